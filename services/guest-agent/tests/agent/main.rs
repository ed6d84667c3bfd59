//! The agent without a VM: its channel and its ssh server.

mod channel;
mod ssh;
mod support;

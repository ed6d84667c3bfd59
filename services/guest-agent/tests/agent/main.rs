//! The agent without a VM: its channel and its ssh server.

mod channel;
mod jobs;
mod ssh;
mod support;
mod workspace;

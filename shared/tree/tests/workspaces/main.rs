//! Both ends of prepares and exports in one process, against real directories.

mod export;
mod hostile_guest;
mod hostile_sender;
mod prepare;
mod random;
mod support;

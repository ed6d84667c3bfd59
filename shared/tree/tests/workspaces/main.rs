//! Both ends of prepares and exports in one process, against real directories.

mod export;
mod hostile_guest;
mod hostile_sender;
mod loss;
mod prepare;
mod random;
mod recovery;
mod support;

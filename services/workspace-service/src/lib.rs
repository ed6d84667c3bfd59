//! The service that opens ways into VMs: byte streams to a process, the ssh server or the console log (`open`), and commands
//! whose output is collected into one reply (`exec`); and that keeps workspaces: what was prepared where, and the operations
//! that prepare, export and remove them.
//!
//! Bytes of an opened stream never pass through it; they go straight between the client and the host-agent. It is an end of a
//! stream itself only for `exec`, for as long as its one request lasts, and for trees that it fetches itself ([`served`]). It keeps nothing in memory that matters: any replica
//! serves any request and adopts any operation.

pub mod config;
pub mod db;
pub mod domain;
mod handlers;
pub mod kinds;
pub mod served;
pub mod server;
mod sweeper;

pub use config::Config;
pub use server::Server;

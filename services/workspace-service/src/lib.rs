//! The service that opens ways into VMs: byte streams to a process, the ssh server or the console log (`open`), and commands
//! whose output is collected into one reply (`exec`).
//!
//! It is stateless: no database, no operation, nothing remembered between two requests. Bytes of an opened stream
//! never pass through it; they go straight between the client and the host-agent. Only `exec` is an end of a stream itself, for as
//! long as its one request lasts. Any replica serves any request.

pub mod config;
pub mod domain;
mod handlers;
pub mod server;

pub use config::Config;
pub use server::Server;

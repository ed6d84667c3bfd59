//! The service that owns VMs: the registry of hosts, placement, the reservation of names, addresses and room, and the
//! operations create, start, stop, restart and delete.
//!
//! It keeps nothing in memory that matters: any replica serves any request and adopts any operation.

pub mod config;
pub mod db;
pub mod domain;
mod handlers;
mod keeper;
mod kinds;
pub mod server;
mod sweeper;

pub use config::Config;
pub use server::Server;

//! The service that owns images: their names, which hosts hold them, the kernels beside them, and all
//! operations that make, name, send and remove these.
//!
//! An image's files are the host-agents' affair; a row here says that they are whole. The two meet in the publication
//! atom ([`kinds`]): the name's row lock is held across the host-agent's rename. The service keeps nothing in memory that
//! matters: any replica serves any request and adopts any operation.

pub mod config;
pub mod db;
pub mod domain;
mod handlers;
pub mod kinds;
pub mod reconciler;
pub mod server;
mod sweeper;

pub use config::Config;
pub use server::Server;

//! Stories of workspaces, as a client on NATS sees them: what is prepared, exported and removed, what follows what, and who ends it.

mod client;
#[path = "../common/mod.rs"]
mod common;
mod crashes;
mod ends;
mod listed;
mod refusals;
mod turns;
mod vms;

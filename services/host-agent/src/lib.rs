//! The host-agent: everything that touches one host. VMM processes, disks, taps, the lab's network, image staging
//! and publication, and the connections into guests.
//!
//! It has no database connection. What is transient on the host stands in each VM's `handles.json`, written before
//! the object it names is made; VMs keep running while the agent is down and are adopted when it comes back.

pub mod activity;
pub mod capability;
pub mod cgroup;
pub mod cleanup;
pub mod config;
pub mod disk;
pub mod dns;
pub mod files;
pub mod guest;
pub mod handlers;
pub mod handles;
pub mod image;
pub mod kernel;
pub mod listing;
pub mod memory;
pub mod net;
pub mod registration;
pub mod server;
pub mod tasks;
pub mod upload;
pub mod usage;
pub mod vm;
pub mod vmm;

//! Load on a lab, and benchmarks of its parts beside the bare engines they stand on.

pub mod boot;
pub mod cp;
pub mod create;
mod database;
pub mod density;
pub mod image_pull;
mod latency;
mod pgbench;
mod process;
pub mod report;
pub mod reserve;
pub mod stream;
pub mod taps;
pub mod workspace;

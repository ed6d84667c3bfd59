//! What every Warren process needs to live: configuration from the environment, telemetry, ordered
//! shutdown and, for tests, a place to die at.

pub mod config;
pub mod fault;
pub mod shutdown;
pub mod telemetry;

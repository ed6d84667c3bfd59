//! Configuration, from the environment.

use std::path::PathBuf;

use runtime::config::{ConfigError, Reader};

/// What this process was told.
#[derive(Clone, Debug)]
pub struct Config {
    /// `WARREN_NATS_URL`.
    pub nats_url: String,
    /// `WARREN_NATS_CREDENTIALS`: a credentials file.
    pub nats_credentials: Option<PathBuf>,
}

impl Config {
    /// Reads the environment.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn from_env() -> Result<Self, ConfigError> {
        let mut reader = Reader::new();
        let nats_url = reader.required("WARREN_NATS_URL", "where NATS is, such as nats://127.0.0.1:4222");
        let nats_credentials = reader.optional("WARREN_NATS_CREDENTIALS");
        reader.finish(|| Some(Self { nats_url: nats_url?, nats_credentials }))
    }
}

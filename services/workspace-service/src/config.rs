//! Configuration, from the environment.

use std::{path::PathBuf, time::Duration};

use contract::deadline;
use runtime::config::{ConfigError, Reader};
use store::StoreConfig;

/// What this process was told.
#[derive(Clone, Debug)]
pub struct Config {
    /// `WARREN_NATS_URL`.
    pub nats_url: String,
    /// `WARREN_NATS_CREDENTIALS`: a credentials file.
    pub nats_credentials: Option<PathBuf>,
    /// `WARREN_DATABASE_URL`.
    pub database_url: String,
    /// The pool of database connections.
    pub pool: StoreConfig,
    /// How long a host may be silent before a transfer is given up.
    pub patience: Duration,
}

impl Config {
    /// What everything else has to be known for.
    pub fn new(nats_url: String, database_url: String) -> Self {
        Self {
            nats_url,
            nats_credentials: None,
            database_url,
            pool: StoreConfig::default(),
            patience: deadline::TRANSFER_SILENCE,
        }
    }

    /// Reads the environment.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn from_env() -> Result<Self, ConfigError> {
        let mut reader = Reader::new();
        let nats_url = reader.required("WARREN_NATS_URL", "where NATS is, such as nats://127.0.0.1:4222");
        let nats_credentials = reader.optional("WARREN_NATS_CREDENTIALS");
        let database_url = reader.required("WARREN_DATABASE_URL", "where PostgreSQL is, such as postgres:///warren");
        reader.finish(|| Some(Self { nats_credentials, ..Self::new(nats_url?, database_url?) }))
    }
}

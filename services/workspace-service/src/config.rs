//! Configuration, from the environment.

use std::{path::PathBuf, time::Duration};

use contract::{MebiBytes, deadline};
use runtime::config::{ConfigError, Reader};
use store::StoreConfig;

use crate::served::{CACHE_BYTES, ServedConfig};

/// Where fetched repositories are kept when nothing else is said.
const CACHE: &str = "/var/cache/warren/workspaces";

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
    /// Trees that this service fetches itself.
    pub served: ServedConfig,
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
            served: ServedConfig {
                cache: CACHE.into(),
                cache_bytes: CACHE_BYTES,
                allow_file: false,
                hosts: None,
                credentials: None,
            },
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
        let size: Option<MebiBytes> = reader.optional("WARREN_GIT_CACHE_SIZE");
        let credentials: Option<PathBuf> = reader.optional("WARREN_GIT_CREDENTIALS");
        if let Some(file) = credentials.as_ref().filter(|file| std::fs::File::open(file).is_err()) {
            reader.problem(format!("WARREN_GIT_CREDENTIALS: {} cannot be read", file.display()));
        }
        let served = ServedConfig {
            cache: reader.or("WARREN_GIT_CACHE", CACHE.into()),
            cache_bytes: size.map_or(CACHE_BYTES, |size| u64::from(size.0) << 20),
            allow_file: reader.or("WARREN_GIT_ALLOW_FILE", false),
            hosts: reader.optional("WARREN_GIT_HOSTS"),
            credentials,
        };
        reader.finish(|| Some(Self { nats_credentials, served, ..Self::new(nats_url?, database_url?) }))
    }
}

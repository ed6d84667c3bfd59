//! Configuration, from the environment.

use std::{path::PathBuf, time::Duration};

use runtime::config::{ConfigError, Reader};
use store::StoreConfig;

use crate::{kinds::BUILD_STEPS, reconciler::Settings};

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
    /// `WARREN_IMAGE_RECONCILE`: how often images are compared with hosts, in seconds (300); 0 for never by itself.
    /// `WARREN_IMAGE_GC_AGE`: how long an image without a name stays, in seconds (a day); 0 for ever.
    /// `WARREN_IMAGE_GC_GRACE`: how long what hosts have of operations that the lab does not know stays, in seconds (six hours).
    pub gc: Settings,
    /// `WARREN_IMAGE_BUILD_STEPS`: how many steps of builds, each with a VM, this process works on at once (32).
    pub build_steps: usize,
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
        let database_url = reader.required("WARREN_DATABASE_URL", "where PostgreSQL is, such as postgres:///warren");
        let mut seconds =
            |variable: &str, default: Duration| Duration::from_secs(reader.or(variable, default.as_secs()));
        let usual = Settings::default();
        let unless_zero = |time: Duration| (!time.is_zero()).then_some(time);
        let gc = Settings {
            every: unless_zero(seconds("WARREN_IMAGE_RECONCILE", usual.every.unwrap_or_default())),
            age: unless_zero(seconds("WARREN_IMAGE_GC_AGE", usual.age.unwrap_or_default())),
            grace: seconds("WARREN_IMAGE_GC_GRACE", usual.grace),
        };
        let build_steps = reader.or("WARREN_IMAGE_BUILD_STEPS", BUILD_STEPS);
        if build_steps == 0 {
            reader.problem("WARREN_IMAGE_BUILD_STEPS: 0 is too few, no build would ever begin; 1 is the least");
        }
        reader.finish(|| {
            Some(Self {
                nats_url: nats_url?,
                nats_credentials,
                database_url: database_url?,
                pool: StoreConfig::default(),
                gc,
                build_steps,
            })
        })
    }
}

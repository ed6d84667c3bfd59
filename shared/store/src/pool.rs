//! The pool of connections.

use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use deadpool_postgres::{Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use tokio_postgres::NoTls;

use crate::StoreError;

/// A pooled connection; it goes back when dropped. A task holds at most one.
pub type Client = deadpool_postgres::Object;

/// How the pool is to be.
#[derive(Clone, Copy, Debug)]
pub struct StoreConfig {
    /// The most connections (at least 1). More than about four a core of the database's machine make it slower.
    pub max_connections: usize,
    /// How long a task waits for a connection before it is told that the database is not available.
    pub wait: Duration,
    /// How long to try for the first connection: services may start before the database does.
    pub patience: Duration,
}

impl Default for StoreConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            max_connections: (4 * cores).clamp(4, 32),
            wait: Duration::from_secs(5),
            patience: Duration::from_secs(30),
        }
    }
}

/// A database; clones share the pool.
#[derive(Clone, Debug)]
pub struct Store {
    pool: Pool,
}

impl Store {
    /// Opens a pool and proves that the database answers.
    ///
    /// # Errors
    /// The URL is malformed, or nothing answered within [`StoreConfig::patience`].
    pub async fn connect(url: &str, config: StoreConfig) -> Result<Self, StoreError> {
        let parsed: tokio_postgres::Config = url.parse().map_err(StoreError::Defect)?;
        let manager = Manager::from_config(parsed, NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
        let pool = Pool::builder(manager)
            .max_size(config.max_connections)
            .wait_timeout(Some(config.wait))
            .create_timeout(Some(config.wait))
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| StoreError::Retryable(error.into()))?;
        let store = Self { pool };
        let pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(1))
            .with_total_delay(Some(config.patience))
            .without_max_times();
        (|| async { store.client().await.map(drop) }).retry(pauses).when(StoreError::is_retryable).await?;
        Ok(store)
    }

    /// A connection.
    ///
    /// # Errors
    /// None came free in time, or the database is not there.
    pub async fn client(&self) -> Result<Client, StoreError> {
        Ok(self.pool.get().await?)
    }
}

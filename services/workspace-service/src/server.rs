//! The service: connected, serving, and shut down in order.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use bus::{Bus, BusConfig, Service};
use operations::{Engine, serve_operation_verbs};
use store::Store;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    Config,
    handlers::{self, App},
    kinds, served, sweeper,
};

/// How long commands under way may go on at shutdown before they are ended.
const REQUESTS_GRACE: Duration = Duration::from_secs(2);

/// How long it may take to end them and to answer their callers.
const CUT_GRACE: Duration = Duration::from_secs(3);

/// How long operations in hand may take at shutdown; what is left is adopted by another worker.
const OPERATIONS_GRACE: Duration = Duration::from_secs(2);

/// A running service.
pub struct Server {
    service: Service,
    engine: Engine,
    sweeper: JoinHandle<Option<()>>,
    stop: CancellationToken,
}

impl Server {
    /// Connects, migrates, and serves; returns once requests are taken.
    ///
    /// # Errors
    /// PostgreSQL or NATS cannot be reached, or the schema cannot be used.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let store = Store::connect(&config.database_url, config.pool).await.context("PostgreSQL cannot be used")?;
        store.migrate().await.context("the database schema cannot be brought up to date")?;
        let mut wire = BusConfig::new(&config.nats_url, "workspace-service");
        wire.credentials.clone_from(&config.nats_credentials);
        let bus = Bus::connect(&wire).await.context("NATS cannot be used")?;

        let cache = config.served.cache.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || served::sweep(&cache)).await {
            tracing::warn!(%error, "what dead processes left was not looked for");
        }
        let engine = kinds::register(Engine::builder(store.clone(), bus.clone(), worker()), &config).start();
        let stop = CancellationToken::new();
        let app = Arc::new(App::new(bus.clone(), store.clone(), engine.submitter(), stop.clone()));
        let description = "ways into VMs, and workspaces in them";
        let service = bus.service("workspace-service", env!("CARGO_PKG_VERSION"), description).await?;
        handlers::serve_all(&service, &app).await?;
        serve_operation_verbs(&service, &store, &bus).await?;
        service.ready().await?;
        let sweeper = tokio::spawn(stop.clone().run_until_cancelled_owned(sweeper::run(store, bus)));
        Ok(Self { service, engine, sweeper, stop })
    }

    /// Takes no more requests, gives those under way a moment, then ends their commands and answers them; then takes no more
    /// operations, and ends.
    pub async fn shutdown(self) {
        let stop = self.stop.clone();
        let cutter = tokio::spawn(async move {
            tokio::time::sleep(REQUESTS_GRACE).await;
            stop.cancel();
        });
        self.service.stop(REQUESTS_GRACE + CUT_GRACE).await;
        cutter.abort();
        self.engine.shutdown(OPERATIONS_GRACE).await;
        self.stop.cancel();
        if let Err(error) = self.sweeper.await {
            tracing::warn!(%error, "the sweeper ended badly");
        }
    }
}

/// This worker's name, unique among all that run and readable in `warren op show`.
fn worker() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let tail = Uuid::new_v4().simple().to_string();
    format!("workspace-service@{}/{}-{}", host.trim(), std::process::id(), &tail[..6])
}

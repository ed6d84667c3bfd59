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
    kinds,
    reconciler::Reconciler,
    sweeper,
};

/// How long requests under way may take at shutdown: waiting ones are answered by whoever the caller asks next.
const REQUESTS_GRACE: Duration = Duration::from_secs(2);

/// How long operations in hand may take at shutdown; what is left is adopted by another worker.
const OPERATIONS_GRACE: Duration = Duration::from_secs(5);

/// A running service.
pub struct Server {
    service: Service,
    engine: Engine,
    /// The sweeper and the reconciler.
    background: [JoinHandle<Option<()>>; 2],
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
        let mut wire = BusConfig::new(&config.nats_url, "image-service");
        wire.credentials.clone_from(&config.nats_credentials);
        let bus = Bus::connect(&wire).await.context("NATS cannot be used")?;

        // Half of the pool stays for everything that is over in a moment.
        let publications = config.pool.max_connections / 2;
        let worker = worker();
        let engine = Engine::builder(store.clone(), bus.clone(), worker.clone());
        let engine = kinds::register(engine, publications, config.build_steps).start();
        let reconciler = Reconciler {
            store: store.clone(),
            bus: bus.clone(),
            submitter: engine.submitter(),
            settings: config.gc,
            worker,
        };
        let app = Arc::new(App { store: store.clone(), submitter: engine.submitter(), reconciler: reconciler.clone() });
        let service = bus.service("image-service", env!("CARGO_PKG_VERSION"), "images").await?;
        handlers::serve_all(&service, &app).await?;
        serve_operation_verbs(&service, &store, &bus).await?;
        service.ready().await?;
        let stop = CancellationToken::new();
        let background = [
            tokio::spawn(stop.clone().run_until_cancelled_owned(sweeper::run(store, bus))),
            tokio::spawn(stop.clone().run_until_cancelled_owned(reconciler.run())),
        ];
        Ok(Self { service, engine, background, stop })
    }

    /// Takes no more requests, then no more operations, then ends.
    pub async fn shutdown(self) {
        self.service.stop(REQUESTS_GRACE).await;
        self.engine.shutdown(OPERATIONS_GRACE).await;
        self.stop.cancel();
        for task in self.background {
            if let Err(error) = task.await {
                tracing::warn!(%error, "the sweeper or the reconciler ended badly");
            }
        }
    }
}

/// This worker's name, unique among all that run and readable in `warren op show`.
fn worker() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let tail = Uuid::new_v4().simple().to_string();
    format!("image-service@{}/{}-{}", host.trim(), std::process::id(), &tail[..6])
}

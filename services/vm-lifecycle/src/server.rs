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
    db::reservation::Reservations,
    handlers::{self, App},
    keeper,
    kinds::{self, Lab},
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
    rounds: Vec<JoinHandle<()>>,
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
        let mut wire = BusConfig::new(&config.nats_url, "vm-lifecycle");
        wire.credentials.clone_from(&config.nats_credentials);
        let bus = Bus::connect(&wire).await.context("NATS cannot be used")?;

        let reservations = Reservations::of_pool(store.clone(), config.pool, config.address_rest);
        let lab = Arc::new(Lab { reservations, domain: config.domain });
        let engine = kinds::register(Engine::builder(store.clone(), bus.clone(), worker()), &lab).start();
        let app = Arc::new(App {
            store: store.clone(),
            bus: bus.clone(),
            submitter: engine.submitter(),
            lab,
            network: config.network,
            host_prefix: config.host_prefix,
            address_rest: config.address_rest,
        });

        let service = bus.service("vm-lifecycle", env!("CARGO_PKG_VERSION"), "hosts and VMs").await?;
        handlers::serve_all(&service, &app).await?;
        serve_operation_verbs(&service, &store, &bus).await?;
        service.ready().await?;
        let stop = CancellationToken::new();
        let rounds = vec![
            tokio::spawn(sweeper::run(store.clone(), stop.clone())),
            tokio::spawn(keeper::run(store, engine.submitter(), stop.clone())),
        ];
        Ok(Self { service, engine, rounds, stop })
    }

    /// Takes no more requests, then no more operations, then ends.
    pub async fn shutdown(self) {
        self.service.stop(REQUESTS_GRACE).await;
        self.stop.cancel();
        self.engine.shutdown(OPERATIONS_GRACE).await;
        for round in self.rounds {
            if let Err(error) = round.await {
                tracing::warn!(%error, "a background task ended badly");
            }
        }
    }
}

/// This worker's name, unique among all that run and readable in `warren op show`.
fn worker() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let tail = Uuid::new_v4().simple().to_string();
    format!("vm-lifecycle@{}/{}-{}", host.trim(), std::process::id(), &tail[..6])
}

//! The service: connected, serving, and shut down in order.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use bus::{Bus, BusConfig, Service};
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    handlers::{self, App},
};

/// How long commands under way may go on at shutdown before they are ended.
const REQUESTS_GRACE: Duration = Duration::from_secs(2);

/// How long it may take to end them and to answer their callers.
const CUT_GRACE: Duration = Duration::from_secs(3);

/// A running service.
pub struct Server {
    service: Service,
    stop: CancellationToken,
}

impl Server {
    /// Connects and serves; returns once requests are taken.
    ///
    /// # Errors
    /// NATS cannot be reached.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let mut wire = BusConfig::new(&config.nats_url, "workspace-service");
        wire.credentials = config.nats_credentials;
        let bus = Bus::connect(&wire).await.context("NATS cannot be used")?;
        let service = bus.service("workspace-service", env!("CARGO_PKG_VERSION"), "ways into VMs").await?;
        let stop = CancellationToken::new();
        handlers::serve_all(&service, &Arc::new(App::new(bus, stop.clone()))).await?;
        service.ready().await?;
        Ok(Self { service, stop })
    }

    /// Takes no more requests, gives those under way a moment, then ends their commands and answers them.
    pub async fn shutdown(self) {
        let stop = self.stop;
        let cutter = tokio::spawn(async move {
            tokio::time::sleep(REQUESTS_GRACE).await;
            stop.cancel();
        });
        self.service.stop(REQUESTS_GRACE + CUT_GRACE).await;
        cutter.abort();
    }
}

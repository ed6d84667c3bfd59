//! `vm-lifecycle`: configuration, telemetry, then the service until it is told to stop.

use anyhow::Context;
use runtime::{shutdown, telemetry};
use vm_lifecycle::{Config, Server};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::from_env()?;
    let _telemetry = telemetry::init("vm-lifecycle", env!("CARGO_PKG_VERSION"), telemetry::Logs::Service)?;
    let stop = shutdown::on_signal().context("the signal handlers cannot be installed")?;
    let server = Server::start(config).await?;
    tracing::info!("ready");
    stop.cancelled().await;
    server.shutdown().await;
    Ok(())
}

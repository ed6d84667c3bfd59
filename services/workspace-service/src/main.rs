//! `workspace-service`: configuration, telemetry, then the service until it is told to stop.

use anyhow::Context;
use runtime::{shutdown, telemetry};
use workspace_service::{Config, Server};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::from_env()?;
    let _telemetry = telemetry::init("workspace-service", env!("CARGO_PKG_VERSION"), telemetry::Logs::Service)?;
    let stop = shutdown::on_signal().context("the signal handlers cannot be installed")?;
    let server = Server::start(config).await?;
    tracing::info!("ready");
    stop.cancelled().await;
    server.shutdown().await;
    Ok(())
}

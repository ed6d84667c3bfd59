//! The host-agent's process.

use clap::Parser;
use host_agent::{cleanup, config::Config, memory, server};
use runtime::{shutdown, telemetry};

/// Runs one host of a Warren lab. Configured by WARREN_* environment variables.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Power off this host's VMs and remove its network, then exit. Images and disks stay.
    #[arg(long)]
    cleanup: bool,
}

fn main() -> anyhow::Result<()> {
    memory::bound();
    run()
}

#[tokio::main]
async fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config = Config::read()?;
    let _telemetry = telemetry::init("host-agent", env!("CARGO_PKG_VERSION"), telemetry::Logs::Service)?;
    if arguments.cleanup {
        return cleanup::run(&config).await;
    }
    server::run(config, shutdown::on_signal()?).await
}

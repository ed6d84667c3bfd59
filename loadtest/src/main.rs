//! `loadtest`: runs one scenario and prints what it measured.

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use loadtest::{boot, cp, create, density, image_pull, reserve, stream, taps, workspace};
use runtime::telemetry;

/// Load on a lab, and benchmarks of its parts.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// How to print what was measured.
    #[arg(short, long, value_enum, default_value = "table", global = true)]
    output: Output,
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// The reservation: bare SQL under pgbench beside the service's path under the same number of clients.
    Reserve(reserve::Options),
    /// Whole creates on a running lab, from the request to `running`; deletes the VMs afterwards.
    Create(create::Options),
    /// Many idle VMs in a lab of its own: what the host-agent and the VMMs take of the host.
    Density(density::Options),
    /// Creates in a lab of its own, one after the other or several at once, beside a bare QEMU with the same kernel and image.
    Boot(boot::Options),
    /// A repository into a VM: `prepare` beside git clone, tar and rsync over ssh, in a lab of its own.
    Workspace(workspace::Options),
    /// A new VM's network: with ready taps and without, beside the programs `ip` and `nft`.
    Taps(taps::Options),
    /// The roads of a session: byte streams over the bus and direct TLS connections, beside bare TCP.
    Stream(stream::Options),
    /// Files into a VM and out of it: `warren cp` beside scp and tar over ssh, in a lab of its own.
    Cp(cp::Options),
    /// Images from a registry to a root filesystem: a pull beside skopeo, umoci and mke2fs, in a lab of its own.
    ImagePull(image_pull::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all went as it should.
async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let _telemetry = telemetry::init("loadtest", env!("CARGO_PKG_VERSION"), telemetry::Logs::Tool)?;
    let (table, json, good) = match arguments.scenario {
        Scenario::Reserve(options) => {
            let report = reserve::run(&options).await?;
            (report.table(), serde_json::to_string_pretty(&report)?, report.good())
        }
        Scenario::Create(options) => {
            let report = create::run(&options).await?;
            (report.table(), serde_json::to_string_pretty(&report)?, report.good())
        }
        Scenario::Density(options) => {
            let report = density::run(&options).await?;
            (report.table(), serde_json::to_string_pretty(&report)?, true)
        }
        Scenario::Boot(options) => {
            let report = boot::run(&options).await?;
            (report.table(), serde_json::to_string_pretty(&report)?, report.good())
        }
        Scenario::Stream(options) => {
            let report = stream::run(&options).await?;
            (report.table(), serde_json::to_string_pretty(&report)?, report.good())
        }
        Scenario::Cp(options) => {
            let report = cp::run(&options).await?;
            (report.table(), serde_json::to_string_pretty(&report)?, report.good())
        }
        Scenario::Workspace(options) => {
            let report = workspace::run(&options).await?;
            (report.table(), serde_json::to_string_pretty(&report)?, report.good())
        }
        Scenario::ImagePull(options) => {
            let report = image_pull::run(&options).await?;
            (report.table(), serde_json::to_string_pretty(&report)?, report.good())
        }
        Scenario::Taps(options) => {
            let report = taps::run(&options).await?;
            (report.table(), serde_json::to_string_pretty(&report)?, report.good())
        }
    };
    println!("{}", if arguments.output == Output::Json { json } else { table });
    Ok(good)
}

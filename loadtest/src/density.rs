//! Scenario **density**: what a host-agent takes of its host with many idle VMs and with none, and what the VMs' VMMs take
//! beside it. It starts a lab of its own, so it needs what deploy/check prepares.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use testkit::lab::{Lab, LabOptions, missing_for_vms};

use crate::{
    process::{cpu_seconds, number},
    report::table,
};

/// How long the agent is watched while nothing is asked of it.
const WATCHED: Duration = Duration::from_secs(20);
/// VMs of one request.
const BATCH: usize = 10;

/// How to measure.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// How many VMs.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub vms: u16,
    /// Memory of each, in MiB.
    #[arg(long, default_value_t = 96)]
    pub memory_mib: u32,
}

/// What processes take.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Taken {
    vms: u16,
    /// The agent's resident memory, in MiB.
    agent_rss_mib: f64,
    /// Its threads.
    agent_threads: u64,
    /// Its open descriptors.
    agent_descriptors: usize,
    /// The share of one processor it needs while nothing is asked of it, in percent.
    agent_cpu_percent: f64,
    /// A VMM's share of memory (its own, and its part of what it shares), in MiB, on average.
    vmm_pss_mib: f64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Without VMs, then with all.
    taken: Vec<Taken>,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let rows = self.taken.iter().map(|taken| {
            vec![
                taken.vms.to_string(),
                format!("{:.1}", taken.agent_rss_mib),
                taken.agent_threads.to_string(),
                taken.agent_descriptors.to_string(),
                format!("{:.2}", taken.agent_cpu_percent),
                format!("{:.0}", taken.vmm_pss_mib),
            ]
        });
        let head = ["VMs", "agent RSS MiB", "threads", "descriptors", "agent CPU %", "VMM PSS MiB each"];
        table(&head, &rows.collect::<Vec<_>>())
    }
}

/// Measures.
///
/// # Errors
/// Something that VMs need is missing, or a VM did not come up.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    if let Some(why) = missing_for_vms() {
        bail!("no VM can be booted here: {why}");
    }
    // What is offered is not what is measured: as many processors as VMs.
    let cpus = ("WARREN_CAPACITY_CPUS".to_owned(), options.vms.to_string());
    let mut lab = Lab::start(LabOptions { env: vec![cpus], ..LabOptions::default() }).await;
    let layout = lab.scratch().join("layout");
    testkit::image::busybox_image().write(&layout)?;
    lab.must(&["image", "pull", &layout.to_string_lossy(), "--layout", "--name", "bb"]).await;
    let mut report = Report { taken: vec![look(&mut lab, 0).await?] };
    let (memory, names): (_, Vec<u16>) = (format!("{}M", options.memory_mib), (1..=options.vms).collect());
    for batch in names.chunks(BATCH) {
        let range = format!("idle-{{{}..{}}}", batch[0], batch[batch.len() - 1]);
        let create = ["vm", "create", &range, "--image", "bb", "--memory", &memory, "--disk", "128M"];
        lab.must(&create).await;
    }
    report.taken.push(look(&mut lab, options.vms).await?);
    Ok(report)
}

async fn look(lab: &mut Lab, vms: u16) -> anyhow::Result<Taken> {
    let host = lab.hosts()[0].clone();
    let agent = lab.pid(&host).context("the host-agent does not run")?;
    let before = cpu_seconds(agent)?;
    // What is measured is the time itself.
    tokio::time::sleep(WATCHED).await;
    let cpu = cpu_seconds(agent)? - before;
    let vmms = testkit::lab::vmms(&lab.state_dir(&host));
    anyhow::ensure!(vmms.len() == usize::from(vms), "{} VMMs run instead of {vms}", vmms.len());
    let shares = vmms.iter().map(|pid| number(*pid, "smaps_rollup", "Pss:")).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Taken {
        vms,
        agent_rss_mib: number(agent, "status", "VmRSS:")? / 1024.0,
        agent_threads: number(agent, "status", "Threads:")? as u64,
        agent_descriptors: std::fs::read_dir(format!("/proc/{agent}/fd"))?.count(),
        agent_cpu_percent: cpu / WATCHED.as_secs_f64() * 100.0,
        vmm_pss_mib: shares.iter().fold(0.0, |sum, share| sum + share) / shares.len().max(1) as f64 / 1024.0,
    })
}

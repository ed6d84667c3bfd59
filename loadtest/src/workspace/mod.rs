//! Scenario **workspace**: a git repository into one VM, by `prepare` and by what people would use without it: `git clone`, `tar` and `rsync` over
//! ssh to the VM's address; each once into nothing and once more without a change. It starts a lab of its own; the image has to have git, tar and rsync.

mod peers;
mod trees;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use bus::{Bus, BusConfig, ByteStream, CallOptions};
use clap::Args;
use contract::{
    SessionId,
    worktree::{About, Placing, Prepare, PrepareRequest, Source},
};
use serde::Serialize;
use testkit::lab::{Lab, LabOptions, missing_for_vms};

use self::{
    peers::Ssh,
    trees::{SHAPES, Shape},
};
use crate::report::table;

/// How long one transfer may take.
const BOUND: Duration = Duration::from_secs(600);
/// How long the stream waits for the prepare's turn.
const QUEUE: Duration = Duration::from_secs(60);
/// The VM.
const VM: &str = "measured";
/// Where the trees go in it.
const PLACE: &str = "/srv/measured";

/// How to measure.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// A tar archive of a root filesystem with git, tar and rsync.
    #[arg(long)]
    pub rootfs_tar: PathBuf,
    /// How often each way is measured; medians are printed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=20))]
    pub runs: u16,
    /// Only these trees: small, large, many, past; left out, all.
    #[arg(long, value_delimiter = ',')]
    pub trees: Vec<String>,
    /// Memory of the VM, in MiB.
    #[arg(long, default_value_t = 1024)]
    pub memory_mib: u32,
    /// Only `prepare`, without the others.
    #[arg(long)]
    pub alone: bool,
}

/// One transfer.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    ms: f64,
    /// Bytes towards the VM and from it.
    wire: u64,
}

/// One way of one tree.
#[derive(Clone, Debug, Serialize)]
struct Line {
    tree: &'static str,
    way: &'static str,
    cold: Vec<Sample>,
    repeated: Vec<Sample>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    lines: Vec<Line>,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let rows: Vec<Vec<String>> = self.lines.iter().map(Line::row).collect();
        table(&["tree", "way", "cold ms", "wire KiB", "again ms", "wire KiB"], &rows)
    }

    /// All that was started has ended well, or there is no report.
    pub fn good(&self) -> bool {
        !self.lines.is_empty()
    }
}

impl Line {
    fn row(&self) -> Vec<String> {
        let of = |samples: &[Sample]| {
            let sample = median(samples);
            [format!("{:.0}", sample.ms), format!("{:.1}", sample.wire as f64 / 1024.0)]
        };
        let names = [self.tree.to_owned(), self.way.to_owned()];
        names.into_iter().chain(of(&self.cold)).chain(of(&self.repeated)).collect()
    }
}

/// The sample of median time.
fn median(samples: &[Sample]) -> Sample {
    let mut sorted = samples.to_vec();
    sorted.sort_by(|a, b| a.ms.total_cmp(&b.ms));
    sorted.get(sorted.len() / 2).copied().unwrap_or(Sample { ms: f64::NAN, wire: 0 })
}

/// Measures.
///
/// # Errors
/// Something that VMs need is missing, or a transfer failed.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    if let Some(why) = missing_for_vms() {
        bail!("no VM can be booted here: {why}");
    }
    for wanted in &options.trees {
        ensure!(
            SHAPES.iter().any(|shape| shape.name == wanted),
            "there is no tree {wanted:?}: small, large, many or past"
        );
    }
    let lab = Lab::start(LabOptions::default()).await;
    let ssh = boot(&lab, options).await?;
    let bus = Bus::connect(&BusConfig::new(lab.nats.url(), "loadtest")).await?;
    let mut report = Report { lines: Vec::new() };
    for shape in
        SHAPES.iter().filter(|shape| options.trees.is_empty() || options.trees.iter().any(|name| name == shape.name))
    {
        let source = lab.scratch().join("source");
        trees::make(shape, &source)?;
        report.lines.extend(measure(shape, &source, &bus, &ssh, options).await?);
        std::fs::remove_dir_all(&source)?;
    }
    drop(ssh);
    lab.must(&["vm", "rm", VM, "--force"]).await;
    Ok(report)
}

/// Boots the VM; how ssh reaches it.
async fn boot(lab: &Lab, options: &Options) -> anyhow::Result<Ssh> {
    let layout = lab.scratch().join("layout");
    testkit::image::Layout::new(vec![testkit::image::Layer::from_tar(&options.rootfs_tar)?]).write(&layout)?;
    lab.must(&["image", "pull", &layout.to_string_lossy(), "--layout", "--name", "measured"]).await;
    let key = peers::make_key(&lab.scratch())?;
    let public = key.with_extension("pub");
    let memory = format!("{}M", options.memory_mib);
    let key_path = public.to_string_lossy();
    let create =
        ["vm", "create", VM, "--image", "measured", "--memory", &memory, "--disk", "6G", "--ssh-key", &key_path];
    lab.must(&create).await;
    let shown: serde_json::Value = serde_json::from_str(&lab.must(&["vm", "show", VM, "-o", "json"]).await)?;
    let address = shown["address"].as_str().context("the VM has no address")?;
    let address = address.split('/').next().unwrap_or(address).to_owned();
    let port = shown["ssh_port"].as_u64().unwrap_or(22);
    Ok(Ssh { namespace: format!("/run/netns/warren-{}", lab.hosts()[0]), key, address, port })
}

/// All ways of one tree, in turn so that a busy moment of the machine does not fall on one of them alone.
async fn measure(
    shape: &'static Shape,
    source: &Path,
    bus: &Bus,
    ssh: &Ssh,
    options: &Options,
) -> anyhow::Result<Vec<Line>> {
    let line = |way| Line { tree: shape.name, way, cold: Vec::new(), repeated: Vec::new() };
    let mut prepare = line("warren prepare");
    let mut peers = [line("git clone"), line("tar"), line("rsync")];
    for _ in 0..options.runs {
        ssh.run(&format!("rm -rf {PLACE} /var/lib/warren/workspaces && sync"))?;
        prepare.cold.push(by_prepare(bus, source, true).await?);
        prepare.repeated.push(by_prepare(bus, source, true).await?);
        if options.alone {
            continue;
        }
        for (line, way) in peers.iter_mut().zip([Ssh::clone_git, Ssh::tar, Ssh::rsync]) {
            ssh.run(&format!("rm -rf {PLACE} && sync"))?;
            line.cold.push(timed(|| way(ssh, source, PLACE, false))?);
            line.repeated.push(timed(|| way(ssh, source, PLACE, true))?);
        }
    }
    let peers = peers.into_iter().filter(|_| !options.alone);
    Ok(std::iter::once(prepare).chain(peers).collect())
}

fn timed(transfer: impl FnOnce() -> anyhow::Result<u64>) -> anyhow::Result<Sample> {
    let began = Instant::now();
    let wire = tokio::task::block_in_place(transfer)?;
    Ok(Sample { ms: began.elapsed().as_secs_f64() * 1000.0, wire })
}

/// A prepare from a plain directory, which is read and hashed within the time that counts.
async fn by_prepare(bus: &Bus, source: &Path, force: bool) -> anyhow::Result<Sample> {
    let began = Instant::now();
    let from = source.to_owned();
    let walked = tokio::task::spawn_blocking(move || tree::walk(&from, |_, _| true)).await??;
    tracing::info!(ms = began.elapsed().as_millis() as u64, "read the directory");
    let session = SessionId::new();
    let stream = ByteStream::open_within(bus, session, QUEUE).await?;
    let request = PrepareRequest {
        vm: VM.to_owned(),
        path: PLACE.to_owned(),
        owner: None,
        source: Source::Upload { session, about: About { origin: "measured".to_owned(), ..About::default() } },
        placing: Placing::Swap,
        force,
        clean: false,
        wait: true,
        timeout_ms: u64::try_from(BOUND.as_millis()).unwrap_or(u64::MAX),
    };
    let waiting = CallOptions { timeout: Some(BOUND), ..CallOptions::default() };
    let prepared = bus.call_with::<Prepare>(&request, waiting);
    let sending = tree::upload(stream, Arc::new(walked.tree), |_| {});
    let (operation, sent) = tokio::join!(prepared, sending);
    let (operation, sent) = (operation?, sent.context("the tree was not taken")?);
    ensure!(operation.error.is_none(), "the prepare failed: {:?}", operation.error);
    Ok(Sample { ms: began.elapsed().as_secs_f64() * 1000.0, wire: sent.wire_bytes })
}

//! Scenario **image-pull**: images from a registry on loopback to a root filesystem ready to boot, by `warren image pull` and by `skopeo
//! copy`, `umoci unpack` and `mke2fs -d` one after the other, in a lab of its own. A pull's time ends when the image is published and
//! synced; the programs sync nothing. What the registry and the lab's other processes take counts for neither.

mod images;
mod memory;
mod peers;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;
use testkit::{
    image::Layout,
    lab::{Lab, LabOptions, missing_for_vms},
    registry::Registry,
};

use crate::{process, report::table};

/// What the filesystem of the programs has room for beside the files, in MiB.
const SPARE_MIB: u64 = 512;

/// How to measure.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// A tar archive of a root filesystem.
    #[arg(long, env = "WARREN_TEST_DEBIAN_TAR")]
    pub rootfs_tar: PathBuf,
    /// In how many layers the second image has the same files.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(2..=64))]
    pub layers: u16,
    /// How many MiB of files the third image has more.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(64..=16_384))]
    pub large_mib: u32,
    /// How often each is measured, in turn; medians are printed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=20))]
    pub runs: u16,
    /// Fail when a pull is not so many times as fast as the programs.
    #[arg(long)]
    pub at_least: Option<f64>,
    /// Fail when the host-agent had so many MiB resident during a pull, or more.
    #[arg(long)]
    pub below_mib: Option<f64>,
}

/// What one way to a root filesystem took.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cost {
    /// Seconds from the start of the first program to the end of the last.
    wall: f64,
    /// Seconds of processor time.
    cpu: f64,
    /// The largest resident memory of a process, in MiB: what it shares with others and its program's own pages included.
    peak_mib: f64,
    /// What of the resident memory is no file's at its largest, in MiB, as seen every few milliseconds; not looked at for the programs.
    peak_anonymous_mib: Option<f64>,
    /// What was written to storage, in MiB.
    written_mib: f64,
}

/// One image.
#[derive(Clone, Debug, Serialize)]
struct Line {
    image: String,
    warren: Vec<Cost>,
    programs: Vec<Cost>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    lines: Vec<Line>,
    /// What the host-agent had resident before the first pull, in MiB, and what of it is no file's.
    idle_mib: (f64, f64),
    at_least: Option<f64>,
    below_mib: Option<f64>,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let row = |image: &str, way: &str, costs: &[Cost]| {
            let figures = [
                format!("{:.2}", median(costs, |cost| cost.wall)),
                format!("{:.2}", median(costs, |cost| cost.cpu)),
                format!("{:.1}", median(costs, |cost| cost.peak_mib)),
                match costs.iter().all(|cost| cost.peak_anonymous_mib.is_some()) {
                    true => format!("{:.1}", median(costs, |cost| cost.peak_anonymous_mib.unwrap_or(f64::NAN))),
                    false => String::new(),
                },
                format!("{:.0}", median(costs, |cost| cost.written_mib)),
            ];
            [image.to_owned(), way.to_owned()].into_iter().chain(figures).collect()
        };
        let rows: Vec<Vec<String>> = self
            .lines
            .iter()
            .flat_map(|line| {
                let times = format!("warren image pull, {:.1} times as fast", line.times());
                [row(&line.image, &times, &line.warren), row("", "skopeo, umoci, mke2fs -d", &line.programs)]
            })
            .collect();
        let (all, anonymous) = self.idle_mib;
        let head = ["image", "way", "wall s", "CPU s", "peak RSS MiB", "anonymous MiB", "written MiB"];
        format!(
            "{}\nThe host-agent before the first pull: {all:.1} MiB resident, {anonymous:.1} MiB of it anonymous.",
            table(&head, &rows)
        )
    }

    /// Whether each pull was as fast, and as small, as was asked for.
    pub fn good(&self) -> bool {
        let fast = |line: &Line| self.at_least.is_none_or(|least| line.times() >= least);
        let small =
            |line: &Line| self.below_mib.is_none_or(|below| line.warren.iter().all(|cost| cost.peak_mib < below));
        !self.lines.is_empty() && self.lines.iter().all(|line| fast(line) && small(line))
    }
}

impl Line {
    /// How many times as fast as the programs.
    fn times(&self) -> f64 {
        median(&self.programs, |cost| cost.wall) / median(&self.warren, |cost| cost.wall)
    }
}

fn median(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> f64 {
    let mut sorted: Vec<f64> = costs.iter().map(of).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Measures.
///
/// # Errors
/// A program is missing, or one way failed.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    if let Some(why) = missing_for_vms() {
        bail!("no lab can be started here: {why}");
    }
    if let Some(program) = peers::missing() {
        bail!("{program} is not here; on Debian: apt-get install skopeo umoci e2fsprogs");
    }
    let (lab, registry) = (Lab::start(LabOptions::default()).await, Registry::start().await);
    let tree = &options.rootfs_tar;
    let agent = agent(&lab)?;
    let idle_mib = (process::number(agent, "status", "VmRSS:")? / 1024.0, process::anonymous_mib(agent)?);
    let Options { at_least, below_mib, .. } = *options;
    let mut report = Report { lines: Vec::new(), idle_mib, at_least, below_mib };
    let several = format!("{} layers", options.layers);
    let large = format!("5 layers, {} MiB more", options.large_mib);
    for (name, tag) in [("1 layer".to_owned(), "one"), (several, "several"), (large, "large")] {
        let image = match tag {
            "one" => images::layered(tree, 1)?,
            "several" => images::layered(tree, options.layers)?,
            _ => images::large(tree, options.large_mib)?,
        };
        let reference = push(&lab, &registry, image, tag).await?;
        let mib = std::fs::metadata(tree)?.len() / 1024 / 1024
            + SPARE_MIB
            + if tag == "large" { u64::from(options.large_mib) * 9 / 8 } else { 0 };
        let mut line = Line { image: name, warren: Vec::new(), programs: Vec::new() };
        // In turn, so that a busy moment of the machine does not fall on one of them alone.
        for _ in 0..options.runs {
            line.warren.push(pull(&lab, &reference).await?);
            let dir = lab.scratch().join("programs");
            line.programs.push(tokio::task::block_in_place(|| peers::pull(&reference, &dir, mib))?);
        }
        report.lines.push(line);
    }
    Ok(report)
}

/// Puts an image into the registry; its reference.
async fn push(lab: &Lab, registry: &Registry, image: Layout, tag: &str) -> anyhow::Result<String> {
    let layout = lab.scratch().join("layout");
    image.write(&layout)?;
    let reference = registry.push_layout(&layout, "measured", tag).await;
    std::fs::remove_dir_all(&layout)?;
    Ok(reference)
}

fn agent(lab: &Lab) -> anyhow::Result<u32> {
    lab.pid(&lab.hosts()[0]).context("the host-agent does not run")
}

/// Pulls an image and removes it, blobs and all.
async fn pull(lab: &Lab, reference: &str) -> anyhow::Result<Cost> {
    let agent = agent(lab)?;
    let (cpu, written) = (process::cpu_seconds(agent)?, process::written_bytes(agent)?);
    process::forget_peak(agent)?;
    let memory = memory::Watch::begin(agent);
    let began = Instant::now();
    lab.must(&["image", "pull", reference, "--name", "measured"]).await;
    let cost = Cost {
        wall: began.elapsed().as_secs_f64(),
        cpu: process::cpu_seconds(agent)? - cpu,
        peak_mib: process::peak_mib(agent)?,
        peak_anonymous_mib: Some(memory.end()?),
        written_mib: (process::written_bytes(agent)? - written) / 1024.0 / 1024.0,
    };
    lab.must(&["image", "rm", "measured"]).await;
    forget_blobs(&lab.state_dir(&lab.hosts()[0]))?;
    Ok(cost)
}

/// Empties the host's cache, so that the next pull downloads again.
fn forget_blobs(state: &Path) -> anyhow::Result<()> {
    let blobs = state.join("blobs/sha256");
    for name in testkit::lab::entries(&blobs) {
        std::fs::remove_file(blobs.join(name))?;
    }
    Ok(())
}

//! Scenario **boot**: from a create's request to its VM being ready, beside a bare QEMU with the same kernel, initramfs and
//! image, in turn on one machine, one at a time or several at once. It starts a lab of its own, so it needs what deploy/check prepares.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use futures::future::try_join_all;
use serde::Serialize;
use serde_json::Value;
use testkit::lab::{Lab, LabOptions, missing_for_vms};

use crate::report::table;

/// What guest-agent writes to the console when its guest is ready.
const READY: &[u8] = b"ready, process 1 is";
/// How long one boot may take.
const BOUND: Duration = Duration::from_secs(120);
/// How often the console is looked at; also how exact the bare figure is.
const LOOK: Duration = Duration::from_millis(5);

/// How to measure.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// How many boots of each, after one of each that is not counted.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub runs: u16,
    /// How many boot at the same time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub at_once: u16,
    /// A tar archive of a root filesystem; left out, an image with only busybox.
    #[arg(long)]
    pub rootfs_tar: Option<PathBuf>,
    /// Memory of each VM, in MiB.
    #[arg(long, default_value_t = 256)]
    pub memory_mib: u32,
    /// Fail when the overhead's median is over this share, e.g. 0.15.
    #[arg(long)]
    pub at_most: Option<f64>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How many booted at the same time.
    at_once: u16,
    /// Request to `running`, in milliseconds, each boot.
    warren_ms: Vec<f64>,
    /// Spawn to ready, in milliseconds, each boot.
    bare_ms: Vec<f64>,
    /// Median of Warren's over median of the bare ones, less one.
    overhead: f64,
    at_most: Option<f64>,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let row = |name: &str, all: &[f64]| {
            let at = [0.0, 0.5, 0.95, 1.0].map(|share| format!("{:.0}", quantile(all, share)));
            std::iter::once(name.to_owned()).chain(at).collect()
        };
        let rows = [row("bare qemu: spawn to ready", &self.bare_ms), row("warren: create to running", &self.warren_ms)];
        format!(
            "{} at once, {} boots each\n{}\noverhead of the medians: {:.1} %",
            self.at_once,
            self.bare_ms.len(),
            table(&["", "min ms", "p50 ms", "p95 ms", "max ms"], &rows),
            self.overhead * 100.0
        )
    }

    /// Whether the overhead is within what was asked for.
    pub fn good(&self) -> bool {
        self.at_most.is_none_or(|most| self.overhead <= most)
    }
}

/// The value that this share (0 to 1) of all does not exceed.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Measures.
///
/// # Errors
/// Something that VMs need is missing, or a boot failed.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    if let Some(why) = missing_for_vms() {
        bail!("no VM can be booted here: {why}");
    }
    let lab = Lab::start(LabOptions::default()).await;
    let layout = lab.scratch().join("layout");
    let image = match &options.rootfs_tar {
        Some(tar) => testkit::image::Layout::new(vec![testkit::image::Layer::from_tar(tar)?]),
        None => testkit::image::busybox_image(),
    };
    image.write(&layout)?;
    lab.must(&["image", "pull", &layout.to_string_lossy(), "--layout", "--name", "measured"]).await;
    create(&lab, options, "template").await?;
    lab.must(&["vm", "stop", "template", "--force"]).await;
    let bare = Bare::of(&lab, options)?;
    let (at_once, at_most) = (options.at_once, options.at_most);
    let mut report = Report { at_once, warren_ms: Vec::new(), bare_ms: Vec::new(), overhead: 0.0, at_most };
    let scratch = lab.scratch();
    for run in 0..=options.runs {
        let names: Vec<String> = (0..at_once).map(|n| format!("measured-{n}")).collect();
        let bare_ms = try_join_all(names.iter().map(|name| bare.boot(&scratch, name))).await?;
        let warren_ms = try_join_all(names.iter().map(|name| create(&lab, options, name))).await?;
        for name in &names {
            lab.must(&["vm", "rm", name, "--force"]).await;
        }
        if run > 0 {
            report.bare_ms.extend(bare_ms);
            report.warren_ms.extend(warren_ms);
        }
    }
    report.overhead = quantile(&report.warren_ms, 0.5) / quantile(&report.bare_ms, 0.5) - 1.0;
    Ok(report)
}

/// Creates a VM by NATS; milliseconds to `running`.
async fn create(lab: &Lab, options: &Options, name: &str) -> anyhow::Result<f64> {
    let bus = bus::Bus::connect(&bus::BusConfig::new(lab.nats.url(), "loadtest")).await?;
    let request: contract::vm::CreateRequest = serde_json::from_value(serde_json::json!({
        "name": name, "image": "measured", "memory": options.memory_mib, "disk": "2G", "wait": true, "timeout_ms": 120_000,
    }))?;
    let waiting = bus::CallOptions { timeout: Some(BOUND), ..Default::default() };
    let began = Instant::now();
    bus.call_with::<contract::vm::Create>(&request, waiting).await?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

/// A bare QEMU on what the template VM was given.
struct Bare {
    vmlinux: PathBuf,
    initramfs: PathBuf,
    rootfs: PathBuf,
    config: PathBuf,
    mac: String,
    memory_mib: u32,
    append: String,
}

impl Bare {
    fn of(lab: &Lab, options: &Options) -> anyhow::Result<Self> {
        let state = lab.state_dir(&lab.hosts()[0]);
        let only = |dir: PathBuf| -> anyhow::Result<PathBuf> {
            let names = testkit::lab::entries(&dir);
            let name = names.first().with_context(|| format!("{} is empty", dir.display()))?;
            Ok(dir.join(name))
        };
        let (kernel, vm, image) = (only(state.join("kernels"))?, only(state.join("vms"))?, only(state.join("images"))?);
        let handles: Value = serde_json::from_slice(&std::fs::read(vm.join("handles.json"))?)?;
        let mac = handles["spec"]["mac"].as_str().context("the template has no MAC address")?.to_owned();
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
        let mhz = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("cpu MHz")?.split(':').nth(1)?.trim().parse::<f64>().ok());
        let khz = mhz.map(|mhz| format!(" tsc_early_khz={}", (mhz * 1000.0) as u32)).unwrap_or_default();
        Ok(Self {
            vmlinux: kernel.join("vmlinux"),
            initramfs: kernel.join("initramfs.cpio"),
            rootfs: image.join("rootfs.ext4"),
            config: vm.join("config.img"),
            mac,
            memory_mib: options.memory_mib,
            append: format!("console=ttyS0 reboot=t panic=-1 quiet loglevel=4 net.ifnames=0 random.trust_cpu=on{khz}"),
        })
    }

    /// Boots once; milliseconds from the spawn to the guest's ready line.
    async fn boot(&self, dir: &Path, name: &str) -> anyhow::Result<f64> {
        let (disk, console) = (dir.join(format!("{name}.qcow2")), dir.join(format!("{name}.log")));
        let backing = format!("backing_file={},backing_fmt=raw", self.rootfs.display());
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-o", &backing])
            .arg(&disk)
            .arg("2G")
            .status()?;
        anyhow::ensure!(made.success(), "qemu-img failed");
        std::fs::write(&console, b"")?;
        let began = Instant::now();
        let mut qemu = Qemu(self.command(&disk, &console).spawn().context("QEMU does not start")?);
        // Somebody is at the host's end, as in a lab, but says nothing: a guest looks after a lonely channel more slowly.
        let mut host = None;
        while !std::fs::read(&console)?.windows(READY.len()).any(|part| part == READY) {
            anyhow::ensure!(qemu.0.try_wait()?.is_none(), "the bare guest ended before it was ready");
            anyhow::ensure!(began.elapsed() < BOUND, "the bare guest was not ready in time");
            if host.is_none() {
                host = tokio::net::UnixStream::connect(channel_socket(&disk)).await.ok();
            }
            tokio::time::sleep(LOOK).await;
        }
        drop(host);
        Ok(began.elapsed().as_secs_f64() * 1000.0)
    }

    fn command(&self, disk: &Path, console: &Path) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-M", "microvm,acpi=on", "-accel", "tcg,tb-size=64", "-cpu", "max", "-smp", "1", "-no-reboot"]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-m", &self.memory_mib.to_string()]);
        command.arg("-kernel").arg(&self.vmlinux).arg("-initrd").arg(&self.initramfs).args(["-append", &self.append]);
        command.args(["-serial", &format!("file:{}", console.display())]);
        for (id, file, rest) in [("root", disk, "format=qcow2"), ("config", &self.config, "format=raw,readonly=on")] {
            command.args(["-drive", &format!("file={},if=none,id={id},{rest}", file.display())]);
            command.args(["-device", &format!("virtio-blk-device,drive={id}")]);
        }
        command.args(["-netdev", "user,id=net,restrict=on"]);
        command.args(["-device", &format!("virtio-net-device,netdev=net,mac={}", self.mac)]);
        command.args(["-device", "virtio-serial-device"]);
        let socket = channel_socket(disk);
        command.args(["-chardev", &format!("socket,id=channel,path={},server=on,wait=off", socket.display())]);
        command.args([
            "-device",
            "virtserialport,chardev=channel,name=warren.channel.0",
            "-device",
            "virtio-rng-device",
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

fn channel_socket(disk: &Path) -> PathBuf {
    disk.with_extension("sock")
}

/// A QEMU that ends with its scope.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("the bare QEMU cannot be ended: {error}");
        }
    }
}

//! Scenario **cp**: files into a VM and out of it, by `warren cp` over TLS and over the bus, and by `scp` and `tar | ssh tar` to the VM's own
//! address, in a lab of its own. Each time counts from the start of the program to its end, when the bytes are in the other side's page cache.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Serialize;
use testkit::lab::{Lab, LabOptions, missing_for_vms};

use crate::report::table;

/// The VM, and what ssh calls it.
const VM: &str = "measured";
/// How large one of many files is, in bytes.
const SMALL: usize = 4096;
/// The ways, in the order they are measured in.
const WAYS: [&str; 4] = ["warren cp, TLS", "warren cp, bus", "scp", "tar | ssh tar"];

/// How to measure.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The size of the one large file, in MiB.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=2048))]
    pub mib: u32,
    /// How many small files (4 KiB each) the tree has.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub files: u32,
    /// How often each way is measured; medians are printed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=20))]
    pub runs: u16,
}

/// One way of one payload in one direction, in milliseconds.
#[derive(Clone, Debug, Serialize)]
struct Line {
    what: String,
    way: &'static str,
    into: Vec<f64>,
    out: Vec<f64>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    lines: Vec<Line>,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let ms = |times: &[f64]| format!("{:.0}", median(times));
        let row = |line: &Line| vec![line.what.clone(), line.way.to_owned(), ms(&line.into), ms(&line.out)];
        let rows: Vec<_> = self.lines.iter().map(row).collect();
        table(&["what", "way", "into the VM, ms", "out of it, ms"], &rows)
    }

    /// All copies have ended well, or there is no report.
    pub fn good(&self) -> bool {
        !self.lines.is_empty()
    }
}

fn median(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Measures.
///
/// # Errors
/// Something that VMs need is missing, or a copy failed.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    if let Some(why) = missing_for_vms() {
        bail!("no VM can be booted here: {why}");
    }
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let env = vec![("WARREN_STREAM_ADDRESS".to_owned(), format!("127.0.0.1:{port}"))];
    let lab = Lab::start(LabOptions { env, ..LabOptions::default() }).await;
    let config = boot(&lab, options).await?;
    let (file, tree) = (lab.scratch().join("file"), lab.scratch().join("tree"));
    std::fs::write(&file, pattern(options.mib as usize * 1024 * 1024))?;
    std::fs::create_dir(&tree)?;
    for number in 0..options.files {
        std::fs::write(tree.join(number.to_string()), pattern(SMALL))?;
    }
    let mut report = Report { lines: Vec::new() };
    let payloads =
        [(file, format!("1 file of {} MiB", options.mib)), (tree, format!("{} files of 4 KiB", options.files))];
    for (path, what) in payloads {
        let mut lines = WAYS.map(|way| Line { what: what.clone(), way, into: Vec::new(), out: Vec::new() });
        // In turn, so that a busy moment of the machine does not fall on one of them alone.
        for _ in 0..options.runs {
            for line in &mut lines {
                let (into, out) = tokio::task::block_in_place(|| copy(&lab, &config, line.way, &path))?;
                line.into.push(into);
                line.out.push(out);
            }
        }
        report.lines.extend(lines);
    }
    lab.must(&["vm", "rm", VM, "--force"]).await;
    Ok(report)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

/// Boots the VM; the configuration that ssh knows it by.
async fn boot(lab: &Lab, options: &Options) -> anyhow::Result<PathBuf> {
    let (layout, key, config) =
        (lab.scratch().join("layout"), lab.scratch().join("key"), lab.scratch().join("ssh_config"));
    testkit::image::busybox_image().write(&layout)?;
    must(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
    lab.must(&["image", "pull", &layout.to_string_lossy(), "--layout", "--name", "measured"]).await;
    let public = key.with_extension("pub").display().to_string();
    let disk = format!("{}M", 512 + options.mib * 2 + options.files / 64);
    let create = ["vm", "create", VM, "--image", "measured", "--memory", "256M", "--disk", &disk, "--ssh-key", &public];
    lab.must(&create).await;
    let shown: serde_json::Value = serde_json::from_str(&lab.must(&["vm", "show", VM, "-o", "json"]).await)?;
    let address = shown["address"].as_str().context("the VM has no address")?;
    let text = format!(
        "Host {VM}\nHostName {}\nPort {}\nUser root\nIdentityFile {}\nIdentitiesOnly yes\nBatchMode yes\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n",
        address.split('/').next().unwrap_or(address),
        shown["ssh_port"].as_u64().unwrap_or(22),
        key.display()
    );
    std::fs::write(&config, text)?;
    Ok(config)
}

/// In under `/root`, and back; both times in milliseconds. Nothing is left on either side.
fn copy(lab: &Lab, config: &Path, way: &str, path: &Path) -> anyhow::Result<(f64, f64)> {
    let name = path.file_name().context("a payload has a name")?.to_string_lossy().into_owned();
    let back = lab.scratch().join("back");
    std::fs::create_dir(&back)?;
    let (here, there) = (path.display().to_string(), format!("{VM}:/root"));
    let target = back.display().to_string();
    let (parent, config) = (path.parent().unwrap_or(path).display().to_string(), config.display().to_string());
    let near = |program: &str| {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/warren-{}", lab.hosts()[0])).arg(program);
        command
    };
    let warren = |from: &str, to: &str| {
        let mut command = lab.outside(&lab.binary("warren"));
        command.args(["cp", from, to]).args((way == WAYS[1]).then_some("--no-direct"));
        command
    };
    let scp = |from: &str, to: &str| {
        let mut command = near("scp");
        command.args(["-q", "-r", "-F", &config, from, to]);
        command
    };
    let tar = |script: String| {
        let mut command = near("sh");
        command.args(["-c", &script]);
        command
    };
    let remote = format!("{there}/{name}");
    let (mut into, mut out) = match way {
        "scp" => (scp(&here, &there), scp(&remote, &target)),
        "tar | ssh tar" => (
            tar(format!("tar -C '{parent}' -cf - '{name}' | ssh -F '{config}' {VM} 'tar -C /root -xf -'")),
            tar(format!("ssh -F '{config}' {VM} 'tar -C /root -cf - {name}' | tar -C '{target}' -xf -")),
        ),
        _ => (warren(&here, &there), warren(&remote, &target)),
    };
    let (into, out) = (timed(&mut into)?, timed(&mut out)?);
    must(Command::new("diff").arg("-rq").arg(path).arg(back.join(&name)))?;
    std::fs::remove_dir_all(&back)?;
    must(near("ssh").args(["-F", &config, VM, &format!("rm -rf /root/{name} && sync")]))?;
    Ok((into, out))
}

fn timed(command: &mut Command) -> anyhow::Result<f64> {
    let began = Instant::now();
    must(command)?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

fn must(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

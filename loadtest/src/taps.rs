//! Scenario **taps**: what it takes until a new VM has its network, by the host-agent with ready taps and without, beside the programs
//! `ip` and `nft`, in turn in a network namespace of its own. It needs root, iproute2 and nftables.

use std::{
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Args;
use contract::{HostId, VmId, feature::NetworkMode};
use host_agent::{
    config::Uplink,
    net::{Guarded, Lab},
};
use nix::sched::{CloneFlags, unshare};
use serde::Serialize;

use crate::{latency::Latencies, report::table};

/// How long the pool may take to be full again.
const REFILL: Duration = Duration::from_secs(10);
/// How long a run's taps may take to go.
const REST: Duration = Duration::from_secs(60);
/// How often it is looked at.
const LOOK: Duration = Duration::from_micros(100);

/// How to measure.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// How many runs of each, after one of each that is not counted.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub runs: u16,
    /// How many VMs a run sets up, one after the other.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub vms: u16,
    /// How many taps are kept ready.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub pool: u16,
}

/// One way of doing it: the median of its runs' medians and of their 95th percentiles, in microseconds.
#[derive(Clone, Debug, Serialize)]
struct Way {
    name: &'static str,
    setup_p50_us: f64,
    setup_p95_us: f64,
    removal_p50_us: f64,
    removal_p95_us: f64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    vms: u16,
    runs: u16,
    pool: u16,
    ways: Vec<Way>,
}

impl Report {
    /// For people.
    pub fn table(&self) -> String {
        let rows: Vec<_> = self
            .ways
            .iter()
            .map(|way| {
                let figures = [way.setup_p50_us, way.setup_p95_us, way.removal_p50_us, way.removal_p95_us];
                std::iter::once(way.name.to_owned()).chain(figures.map(|figure| format!("{figure:.0}"))).collect()
            })
            .collect();
        let header = ["a VM's network", "setup p50 µs", "p95 µs", "removal p50 µs", "p95 µs"];
        format!(
            "{}\nmedians of {} runs with {} VMs each; the pool holds {}",
            table(&header, &rows),
            self.runs,
            self.vms,
            self.pool
        )
    }

    /// There is nothing that could be wrong but an error.
    pub fn good(&self) -> bool {
        true
    }
}

/// What one run took.
struct Run {
    setup: Latencies,
    removal: Latencies,
}

/// How a way sets up one VM's network and removes it.
trait Network {
    /// Makes ready for the next VM; not measured.
    fn settle(&self) -> anyhow::Result<()>;
    fn set_up(&self, guest: Guarded) -> anyhow::Result<Guarded>;
    fn remove(&self, guest: &Guarded) -> anyhow::Result<()>;
    /// Waits for what is done after the answer; not measured.
    fn rest(&self) -> anyhow::Result<()>;
}

/// The host-agent's way.
struct Agent {
    lab: Lab,
    waits: bool,
}

impl Network for Agent {
    fn settle(&self) -> anyhow::Result<()> {
        let give_up = Instant::now() + REFILL;
        while self.waits && self.lab.pool().ready < self.lab.pool().size {
            anyhow::ensure!(Instant::now() < give_up, "the pool is not filled: {:?}", self.lab.pool().trouble);
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    fn set_up(&self, mut guest: Guarded) -> anyhow::Result<Guarded> {
        guest.tap = self.lab.take_tap();
        self.lab.ensure_tap(&guest)?;
        Ok(guest)
    }

    fn remove(&self, guest: &Guarded) -> anyhow::Result<()> {
        Ok(self.lab.remove_guest(guest)?)
    }

    fn rest(&self) -> anyhow::Result<()> {
        let give_up = Instant::now() + REST;
        while self.lab.taps()?.iter().any(|tap| tap.vm.is_some()) {
            anyhow::ensure!(Instant::now() < give_up, "the taps are not removed");
            std::thread::sleep(10 * LOOK);
        }
        Ok(())
    }
}

/// The same by programs, as a script would: what is made is the same tap with the same rules.
struct Programs {
    namespace: String,
}

impl Programs {
    fn run(&self, program: &str, arguments: &[&str], input: &str) -> anyhow::Result<()> {
        let inside = format!("--net=/run/netns/{}", self.namespace);
        let mut command = Command::new("nsenter");
        command.args([&*inside, program]).args(arguments).stdin(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("{program} cannot be started"))?;
        child.stdin.take().context("it has an input")?.write_all(input.as_bytes())?;
        anyhow::ensure!(child.wait()?.success(), "{program} {arguments:?} failed");
        Ok(())
    }

    fn elements(verb: &str, guest: &Guarded) -> String {
        let Guarded { tap, mac, address, .. } = guest;
        format!(
            "{verb} element bridge warren taken {{ \"{tap}\" }}\n{verb} element bridge warren macs {{ \"{tap}\" . {mac} }}\n\
             {verb} element bridge warren guests {{ \"{tap}\" . {mac} . {address} }}\n\
             {verb} element inet warren outward {{ {address} }}\n"
        )
    }
}

impl Network for Programs {
    fn settle(&self) -> anyhow::Result<()> {
        Ok(())
    }

    fn set_up(&self, guest: Guarded) -> anyhow::Result<Guarded> {
        self.run("nft", &["-f", "-"], &Self::elements("add", &guest))?;
        self.run("ip", &["tuntap", "add", &guest.tap, "mode", "tap"], "")?;
        self.run("ip", &["link", "set", &guest.tap, "master", "wrbr0", "up"], "")?;
        Ok(guest)
    }

    fn remove(&self, guest: &Guarded) -> anyhow::Result<()> {
        self.run("nft", &["-f", "-"], &Self::elements("delete", guest))?;
        self.run("ip", &["link", "del", &guest.tap], "")
    }

    fn rest(&self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Measures.
///
/// # Errors
/// Root, `ip` or `nft` is missing, or the kernel refused something.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    if !nix::unistd::geteuid().is_root() {
        bail!("network namespaces need root");
    }
    let options = options.clone();
    tokio::task::spawn_blocking(move || {
        // A thread of its own stands for the machine, so that this one's network is not touched.
        let machine = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).context("no network namespace can be made")?;
            measure(&options)
        });
        machine.join().unwrap_or_else(|_| bail!("the measuring thread failed unexpectedly"))
    })
    .await?
}

fn measure(options: &Options) -> anyhow::Result<Report> {
    let host: HostId = format!("loadtest-{}", std::process::id()).parse().map_err(anyhow::Error::msg)?;
    let lab = |taps| Lab::with_pool(&host, Uplink::None, taps);
    let ways: [(&'static str, u16, bool); 3] = [
        ("host-agent, a ready tap", options.pool, true),
        ("host-agent, ready taps, back to back", options.pool, false),
        ("host-agent, no pool", 0, false),
    ];
    let mut report = Report { vms: options.vms, runs: options.runs, pool: options.pool, ways: Vec::new() };
    let outcome = (|| {
        for (name, taps, waits) in ways {
            let lab = lab(taps);
            lab.ensure([10, 77, 0, 1].into(), "10.77.0.0/24".parse()?, &[])?;
            report.ways.push(way(name, options, &Agent { lab, waits })?);
        }
        let namespace = lab(0).namespace().name().to_owned();
        report.ways.push(way("ip and nft, three processes", options, &Programs { namespace })?);
        anyhow::Ok(())
    })();
    lab(0).remove()?;
    outcome.map(|()| report)
}

/// Measures one way.
fn way(name: &'static str, options: &Options, network: &impl Network) -> anyhow::Result<Way> {
    let mut runs = Vec::new();
    for run in 0..=options.runs {
        let measured = once(options, network)?;
        if run > 0 {
            runs.push(measured);
        }
    }
    let median = |figure: &dyn Fn(&Run) -> f64| {
        let mut figures: Vec<f64> = runs.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN) * 1000.0
    };
    Ok(Way {
        name,
        setup_p50_us: median(&|run| run.setup.quantile_ms(0.50)),
        setup_p95_us: median(&|run| run.setup.quantile_ms(0.95)),
        removal_p50_us: median(&|run| run.removal.quantile_ms(0.50)),
        removal_p95_us: median(&|run| run.removal.quantile_ms(0.95)),
    })
}

fn once(options: &Options, network: &impl Network) -> anyhow::Result<Run> {
    let mut run = Run { setup: Latencies::new(), removal: Latencies::new() };
    let mut guests = Vec::new();
    for number in 0..options.vms {
        let last = u8::try_from(number + 2)?;
        let guest = Guarded {
            vm: VmId::new(),
            tap: format!("wtscript{number}"),
            mac: format!("02:57:0a:4d:00:{last:02x}"),
            address: [10, 77, 0, last].into(),
            mode: NetworkMode::Internet,
        };
        network.settle()?;
        let began = Instant::now();
        let guest = network.set_up(guest)?;
        run.setup.record(began.elapsed());
        guests.push(guest);
    }
    for guest in guests {
        let began = Instant::now();
        network.remove(&guest)?;
        run.removal.record(began.elapsed());
    }
    network.rest()?;
    Ok(run)
}

//! The host-agent's configuration, from the environment.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use bus::direct::Listen;
use contract::{HostId, MebiBytes, host::Capacity};
use ipnet::Ipv4Net;
use runtime::config::{ConfigError, Reader};

use crate::{
    disk, dns, files,
    image::{self, ENTRIES_MAX, ImageOptions, Limits},
    net::LARGEST_POOL,
};

/// Virtual CPUs offered for each real one when nothing else is said: lab VMs mostly wait.
const CPU_OVERCOMMIT: u32 = 8;
/// Memory that stays with the host and its processes.
const MEMORY_RESERVE: MebiBytes = MebiBytes(1024);
/// Disk space that stays free.
const DISK_RESERVE: MebiBytes = MebiBytes(2048);

/// How many taps are kept ready when nothing else is said: more creates than that seldom reach one host at once.
const TAP_POOL: u16 = 8;

/// How guests are executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceleration {
    /// KVM if a probe boot shows that it works, else TCG.
    Auto,
    /// KVM without a probe.
    Kvm,
    /// Emulation.
    Tcg,
}

impl std::str::FromStr for Acceleration {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            other => Err(format!("{other:?} is not one of auto, kvm, tcg")),
        }
    }
}

/// How the lab's network reaches the machine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// Not at all: an isolated lab.
    None,
    /// By a veth pair with these two addresses, translated on both sides.
    Veth(Ipv4Net),
}

/// The configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `WARREN_NATS_URL`.
    pub nats_url: String,
    /// `WARREN_NATS_CREDENTIALS`.
    pub nats_credentials: Option<PathBuf>,
    /// `WARREN_STATE_DIR`: images, VMs, stagings, kernels.
    pub state_dir: PathBuf,
    /// `WARREN_HOST_ID`: the host's name in the lab.
    pub host: HostId,
    /// `WARREN_KERNEL`: vmlinuz or vmlinux for guests.
    pub kernel: PathBuf,
    /// `WARREN_KERNEL_MODULES`: its `lib/modules/<release>`.
    pub modules: PathBuf,
    /// `WARREN_KERNELS`: a directory of kernels VMs may ask for by name.
    pub kernels: Option<PathBuf>,
    /// `WARREN_DISK`: auto, reflink, qcow2 or copy.
    pub disk: disk::Wanted,
    /// `WARREN_GUEST_AGENT`: the static guest-agent.
    pub guest_agent: PathBuf,
    /// `WARREN_ACCEL`: auto, kvm or tcg.
    pub acceleration: Acceleration,
    /// `WARREN_UPLINK`: none or veth.
    pub uplink: Uplink,
    /// `WARREN_TAP_POOL`: how many taps are kept ready for new VMs.
    pub tap_pool: u16,
    /// `WARREN_PUBLISH_ADDRESS`: the machine's address published ports are opened on where they name none.
    pub publish_address: Ipv4Addr,
    /// `WARREN_DNS_FORWARD` and `WARREN_DNS_ADDRESS`: whom the lab's name server asks for the rest, and where else it serves.
    pub dns: dns::Options,
    /// `WARREN_WORKSPACE_DIRS`: directories of this host that may be put into VMs, with what is below them; separated by colons.
    pub workspace_dirs: Vec<PathBuf>,
    /// `WARREN_IMAGE_DIRS`: directories of this host whose files may become images, with what is below them; separated by colons.
    pub image_dirs: Vec<PathBuf>,
    /// `WARREN_STREAM_ADDRESS` and `WARREN_STREAM_ADVERTISE`: where direct streams come in, and what clients are told.
    pub stream: Option<Listen>,
    /// `WARREN_INSECURE_REGISTRIES`, `WARREN_DOCKER_CONFIG`, `WARREN_IMAGE_MIRRORS`, `WARREN_IMAGE_CACHE` and `WARREN_DISK_HIGH_WATER`:
    /// where images come from, and how much of the disk they may take; `WARREN_IMAGE_BYTES`, `WARREN_IMAGE_ENTRIES`,
    /// `WARREN_IMAGE_RATIO` and `WARREN_IMAGE_DEVICES`: what an image may ask.
    pub images: ImageOptions,
    capacity: CapacityOverride,
}

#[derive(Clone, Debug)]
struct CapacityOverride {
    overcommit: u32,
    cpus: Option<u32>,
    memory: Option<MebiBytes>,
    disk: Option<MebiBytes>,
}

impl Config {
    /// Reads the environment.
    ///
    /// # Errors
    /// Everything that is missing or malformed, together.
    pub fn read() -> Result<Self, ConfigError> {
        let mut env = Reader::new();
        let nats_url = env.or("WARREN_NATS_URL", "nats://127.0.0.1:4222".to_owned());
        let nats_credentials = env.optional("WARREN_NATS_CREDENTIALS");
        let state_dir: PathBuf = env.or("WARREN_STATE_DIR", PathBuf::from("/var/lib/warren"));
        let host = env.optional("WARREN_HOST_ID").or_else(machine_name);
        if host.is_none() {
            env.problem("WARREN_HOST_ID is not set and the machine's name is no DNS label");
        }
        let kernel = env.required("WARREN_KERNEL", "the guests' kernel, a vmlinuz or vmlinux file");
        let modules = env.required("WARREN_KERNEL_MODULES", "that kernel's lib/modules/<release> directory");
        let guest_agent = env.optional("WARREN_GUEST_AGENT").or_else(beside_own_executable);
        if guest_agent.is_none() {
            env.problem("WARREN_GUEST_AGENT is not set and no guest-agent lies beside this executable");
        }
        for (variable, path) in
            [("WARREN_KERNEL", &kernel), ("WARREN_KERNEL_MODULES", &modules), ("WARREN_GUEST_AGENT", &guest_agent)]
        {
            if let Some(path) = path as &Option<PathBuf>
                && !path.exists()
            {
                env.problem(format!("{variable} names {}, which does not exist", path.display()));
            }
        }
        let kernels: Option<PathBuf> = env.optional("WARREN_KERNELS");
        if let Some(dir) = kernels.as_ref().filter(|dir| !dir.is_dir()) {
            env.problem(format!("WARREN_KERNELS names {}, which is no directory", dir.display()));
        }
        let disk = env.or("WARREN_DISK", disk::Wanted::Auto);
        let acceleration = env.or("WARREN_ACCEL", Acceleration::Auto);
        let uplink = uplink(&mut env);
        let tap_pool = env.or("WARREN_TAP_POOL", TAP_POOL);
        if tap_pool > LARGEST_POOL {
            env.problem(format!("WARREN_TAP_POOL {tap_pool} is more than {LARGEST_POOL}"));
        }
        let publish_address = env.or("WARREN_PUBLISH_ADDRESS", Ipv4Addr::LOCALHOST);
        let dns = dns(&mut env);
        let workspace_dirs = directories(&mut env, "WARREN_WORKSPACE_DIRS");
        let image_dirs = directories(&mut env, "WARREN_IMAGE_DIRS");
        let stream = stream(&mut env);
        let images = images(&mut env);
        let capacity = CapacityOverride {
            overcommit: env.or("WARREN_CPU_OVERCOMMIT", CPU_OVERCOMMIT),
            cpus: env.optional("WARREN_CAPACITY_CPUS"),
            memory: env.optional("WARREN_CAPACITY_MEMORY"),
            disk: env.optional("WARREN_CAPACITY_DISK"),
        };
        if !state_dir.is_absolute() {
            env.problem(format!("WARREN_STATE_DIR {} is not an absolute path", state_dir.display()));
        }
        env.finish(|| {
            Some(Self {
                nats_url,
                nats_credentials,
                state_dir,
                host: host?,
                kernel: kernel?,
                modules: modules?,
                kernels,
                disk,
                guest_agent: guest_agent?,
                acceleration,
                uplink,
                tap_pool,
                publish_address,
                dns,
                workspace_dirs,
                image_dirs,
                stream,
                images,
                capacity,
            })
        })
    }

    /// What the host offers now.
    pub fn capacity(&self) -> Capacity {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = nix::sys::sysinfo::sysinfo().map_or(0, |info| info.ram_total());
        let free = files::free_bytes(&self.state_dir).unwrap_or(0);
        let less = |bytes: u64, reserve: MebiBytes| MebiBytes(MebiBytes::holding(bytes).0.saturating_sub(reserve.0));
        Capacity {
            cpus: self
                .capacity
                .cpus
                .unwrap_or_else(|| u32::try_from(cores).unwrap_or(u32::MAX).saturating_mul(self.capacity.overcommit)),
            memory: self.capacity.memory.unwrap_or_else(|| less(memory, MEMORY_RESERVE)),
            disk: self.capacity.disk.unwrap_or_else(|| less(free, DISK_RESERVE)),
        }
    }
}

fn images(env: &mut Reader) -> ImageOptions {
    let insecure = env.or("WARREN_INSECURE_REGISTRIES", String::new());
    let mirrors = env.or("WARREN_IMAGE_MIRRORS", String::new());
    let mirrors = image::parse_mirrors(&mirrors).unwrap_or_else(|why| {
        env.problem(format!("WARREN_IMAGE_MIRRORS: {why}"));
        Vec::new()
    });
    let cache: Option<MebiBytes> = env.optional("WARREN_IMAGE_CACHE");
    let high_water = env.or("WARREN_DISK_HIGH_WATER", image::HIGH_WATER);
    if !(1..=100).contains(&high_water) {
        env.problem(format!("WARREN_DISK_HIGH_WATER {high_water} is not between 1 and 100 (percent; 100: no mark)"));
    }
    ImageOptions {
        insecure_registries: insecure.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        docker_config: env.optional("WARREN_DOCKER_CONFIG"),
        mirrors,
        cache_bytes: cache.map(MebiBytes::bytes),
        high_water,
        limits: image_limits(env),
    }
}

fn image_limits(env: &mut Reader) -> Limits {
    let usual = Limits::default();
    let limits = Limits {
        unpacked: env.or("WARREN_IMAGE_BYTES", MebiBytes::holding(usual.unpacked)).bytes(),
        entries: env.or("WARREN_IMAGE_ENTRIES", usual.entries),
        ratio: env.or("WARREN_IMAGE_RATIO", usual.ratio),
        devices: env.or("WARREN_IMAGE_DEVICES", usual.devices),
        ..usual
    };
    if limits.ratio == 0 {
        env.problem("WARREN_IMAGE_RATIO is 0, which no layer keeps");
    }
    if limits.entries > ENTRIES_MAX {
        env.problem(format!("WARREN_IMAGE_ENTRIES {} is more than {ENTRIES_MAX}", limits.entries));
    }
    limits
}

fn uplink(env: &mut Reader) -> Uplink {
    let kind = env.or("WARREN_UPLINK", "none".to_owned());
    let network: Ipv4Net = env.or("WARREN_UPLINK_NETWORK", DEFAULT_UPLINK);
    match kind.as_str() {
        "none" => Uplink::None,
        "veth" => Uplink::Veth(network),
        other => {
            env.problem(format!("WARREN_UPLINK {other:?} is not one of none, veth"));
            Uplink::None
        }
    }
}

fn directories(env: &mut Reader, variable: &'static str) -> Vec<PathBuf> {
    let text = env.or(variable, String::new());
    let directories: Vec<PathBuf> = text.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    for directory in directories.iter().filter(|directory| !directory.is_absolute() || !directory.is_dir()) {
        env.problem(format!("{variable} names {}, which is no directory with an absolute path", directory.display()));
    }
    directories
}

fn dns(env: &mut Reader) -> dns::Options {
    let upstream = env.or("WARREN_DNS_FORWARD", dns::Upstream::Machine);
    let address: Option<SocketAddr> = env.optional("WARREN_DNS_ADDRESS");
    if let Some(address) = address {
        if address.port() == 0 {
            env.problem(format!("WARREN_DNS_ADDRESS {address} has no port"));
        }
        if matches!(&upstream, dns::Upstream::Servers(servers) if servers.contains(&address)) {
            env.problem(format!(
                "WARREN_DNS_FORWARD names {address}, which is this host-agent's own WARREN_DNS_ADDRESS"
            ));
        }
    }
    dns::Options { upstream, address }
}

fn stream(env: &mut Reader) -> Option<Listen> {
    let address: Option<SocketAddr> = env.optional("WARREN_STREAM_ADDRESS");
    let advertised = env.or("WARREN_STREAM_ADVERTISE", String::new());
    let advertised: Vec<String> =
        advertised.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect();
    for wrong in advertised.iter().filter(|address| !is_host_and_port(address)) {
        env.problem(format!("WARREN_STREAM_ADVERTISE {wrong:?} is not address:port"));
    }
    match address {
        None if !advertised.is_empty() => env.problem("WARREN_STREAM_ADVERTISE is set without WARREN_STREAM_ADDRESS"),
        Some(address) if address.ip().is_unspecified() && advertised.is_empty() => env.problem(format!(
            "WARREN_STREAM_ADDRESS {address} names no address that clients could be told: set WARREN_STREAM_ADVERTISE"
        )),
        _ => {}
    }
    address.map(|address| Listen { address, advertised })
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// From the shared address space of RFC 6598, which neither the internet nor ordinary private networks use.
const DEFAULT_UPLINK: Ipv4Net = match Ipv4Net::new(std::net::Ipv4Addr::new(100, 64, 77, 0), 30) {
    Ok(network) => network,
    Err(_) => unreachable!(),
};

fn machine_name() -> Option<HostId> {
    let name = nix::unistd::gethostname().ok()?.into_string().ok()?.to_lowercase();
    name.split('.').next()?.parse().ok()
}

fn beside_own_executable() -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.with_file_name("guest-agent");
    path.exists().then_some(path)
}

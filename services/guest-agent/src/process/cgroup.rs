//! Control groups (cgroups v2, cgroup-v2.rst of the kernel): each command has one of its own below one for all commands, and the agent
//! one beside them. A command that forks or hoards without end fails by itself; the agent, and commands beside it, go on.
//!
//! This is for mishaps and for users of the VM without root: a root of the guest may leave its group. Where the guest has no cgroups v2
//! there are no groups, and commands run without.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// Where inits mount cgroups v2; the second beside version 1.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// What is used, as far as the kernel has it.
const CONTROLLERS: [&str; 3] = ["+cpu", "+memory", "+pids"];
/// The group of the agent.
const AGENT: &str = "warren.agent";
/// The group of all commands' groups.
const COMMANDS: &str = "warren.commands";
/// Of the processes and threads that the guest's kernel can have, in per cent: what one command gets.
const PIDS_OF_ONE: u64 = 50;
/// And what all commands together get; the rest is the system's and the agent's.
const PIDS_OF_ALL: u64 = 80;
/// The part of the guest's memory that commands leave to everything else: an eighth, within these bounds in bytes.
const RESERVE_SHARE: u64 = 8;
const RESERVE_MIN: u64 = 32 * MIB;
const RESERVE_MAX: u64 = 128 * MIB;
/// What one command leaves of that to the others, in bytes: so it is in its own group that a process is killed for want of memory.
const BESIDE: u64 = 16 * MIB;
/// The agent's memory that is never taken from it, in bytes.
const AGENT_MEMORY: u64 = 24 * MIB;
const MIB: u64 = 1024 * 1024;

/// What commands may have.
#[derive(Debug)]
struct Limits {
    /// Processes and threads of one command.
    pids_of_one: u64,
    /// And of all.
    pids_of_all: u64,
    /// Memory of one command, in bytes.
    memory_of_one: u64,
    /// And of all.
    memory_of_all: u64,
}

/// Makes groups. Clones make the same.
#[derive(Clone, Debug, Default)]
pub struct Cgroups(Option<Arc<Made>>);

#[derive(Debug, Default)]
struct Made {
    settled: AtomicBool,
    count: AtomicU64,
}

/// The group of one command. It goes when all its processes have gone.
#[derive(Debug)]
pub struct Group(PathBuf);

impl Cgroups {
    /// Makes none: for an agent that is not the only one of its machine.
    pub fn none() -> Self {
        Self(None)
    }

    /// Makes them in this guest.
    pub fn of_the_guest() -> Self {
        Self(Some(Arc::default()))
    }

    /// A group for a command that is about to be started; nothing where there are no cgroups v2.
    pub fn group(&self) -> Option<Group> {
        let made = self.0.as_ref()?;
        // Looked for each time, as the image's init mounts them some time after the agent's start.
        let root = MOUNTS.iter().map(Path::new).find(|path| is_cgroup2(path))?;
        match made.group(root) {
            Ok(group) => Some(group),
            Err(error) => {
                tracing::warn!("a command runs without a control group: {error}");
                None
            }
        }
    }
}

impl Made {
    fn group(&self, root: &Path) -> io::Result<Group> {
        let commands = root.join(COMMANDS);
        // An init that begins meanwhile moves whom it found in the root group before to a group of its own (systemd's init.scope).
        if !self.settled.load(Ordering::Relaxed) || !commands.join("pids.max").exists() || !agent_is_home() {
            settle(root)?;
            self.settled.store(true, Ordering::Relaxed);
        }
        sweep(&commands);
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let group = Group(commands.join(format!("{}.{number}", std::process::id())));
        fs::create_dir(&group.0)?;
        let limits = limits();
        set(&group.0, "pids.max", limits.pids_of_one);
        set(&group.0, "memory.max", limits.memory_of_one);
        Ok(group)
    }
}

impl Group {
    /// What a process writes `0` to that enters the group.
    pub(super) fn door(&self) -> io::Result<fs::File> {
        fs::OpenOptions::new().write(true).open(self.0.join("cgroup.procs"))
    }

    /// Kills every process in it, whatever session they have made for themselves.
    ///
    /// # Errors
    /// The kernel is older than 5.14.
    pub(super) fn kill(&self) -> io::Result<()> {
        fs::write(self.0.join("cgroup.kill"), "1")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Refused while a process is left in it; then a later command sweeps it away.
        fs::remove_dir(&self.0).unwrap_or_default();
    }
}

fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Makes the agent's group and that of all commands, and their limits.
fn settle(root: &Path) -> io::Result<()> {
    let (agent, commands) = (root.join(AGENT), root.join(COMMANDS));
    share_out(root);
    for group in [&agent, &commands] {
        match fs::create_dir(group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    fs::write(agent.join("cgroup.procs"), std::process::id().to_string())?;
    set(&agent, "memory.min", AGENT_MEMORY);
    share_out(&commands);
    let limits = limits();
    set(&commands, "pids.max", limits.pids_of_all);
    set(&commands, "memory.max", limits.memory_of_all);
    Ok(())
}

/// Whether the agent is in its group (cgroups(7), "/proc files"); also where that cannot be known.
fn agent_is_home() -> bool {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    own.is_none_or(|own| own == AGENT)
}

/// Lets a group's children have controllers. One that the kernel lacks, or that version 1 has, is left out.
fn share_out(group: &Path) {
    for controller in CONTROLLERS {
        if let Err(error) = fs::write(group.join("cgroup.subtree_control"), controller) {
            tracing::debug!("no {controller} below {}: {error}", group.display());
        }
    }
}

fn set(group: &Path, name: &str, value: u64) {
    if let Err(error) = fs::write(group.join(name), value.to_string()) {
        tracing::debug!("cannot set {name} of {}: {error}", group.display());
    }
}

/// Removes groups whose last process has gone.
fn sweep(commands: &Path) {
    let groups = fs::read_dir(commands).into_iter().flatten().flatten();
    for group in groups.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        fs::remove_dir(group.path()).unwrap_or_default();
    }
}

fn limits() -> Limits {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let pids = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"].into_iter().filter_map(number).min();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    limits_of(pids.unwrap_or(u64::from(u16::MAX)), memory_of(&meminfo).unwrap_or(u64::MAX))
}

/// `MemTotal` of `/proc/meminfo`, in bytes.
fn memory_of(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024))
}

fn limits_of(pids: u64, memory: u64) -> Limits {
    let reserve = (memory / RESERVE_SHARE).clamp(RESERVE_MIN, RESERVE_MAX);
    let memory_of_all = memory.saturating_sub(reserve).max(memory / 2);
    Limits {
        pids_of_one: pids / 100 * PIDS_OF_ONE,
        pids_of_all: pids / 100 * PIDS_OF_ALL,
        memory_of_one: memory_of_all.saturating_sub(BESIDE).max(memory_of_all / 2),
        memory_of_all,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_leave_something_to_everybody_else() {
        let small = limits_of(1900, 250 * MIB);
        assert_eq!((small.pids_of_one, small.pids_of_all), (950, 1520));
        assert_eq!((small.memory_of_one, small.memory_of_all), (202 * MIB, 218 * MIB));
        assert_eq!(limits_of(32768, 8192 * MIB).memory_of_all, 8064 * MIB);
        let tiny = limits_of(400, 48 * MIB);
        assert_eq!((tiny.memory_of_one, tiny.memory_of_all), (12 * MIB, 24 * MIB));
        assert_eq!(memory_of("MemFree: 3 kB\nMemTotal:      2048 kB\n"), Some(2 * MIB));
        assert_eq!(memory_of("MemTotal: much"), None);
    }

    #[test]
    fn without_cgroups_there_is_no_group() {
        assert!(Cgroups::none().group().is_none());
        assert!(!is_cgroup2(Path::new("/proc")));
    }
}

//! Control groups (cgroup v2, Linux Documentation/admin-guide/cgroup-v2.rst): one for each VMM, with limits where the kernel's
//! controllers are to be had, and its counters.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use contract::{HostId, VmId, agent::VmSpec};

/// The controllers VMMs are limited by.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];
/// Memory a VMM may have beside its guest's, in bytes: QEMU itself, its translation cache, its buffers.
const MEMORY_OVERHEAD: u64 = 384 << 20;
/// Threads a VMM may have: virtual processors, and QEMU's pool for disks of at most 64.
const PIDS: u64 = 256;
/// How often, and at which distance, a group is looked at until the processes that were killed in it are gone.
const KILL_LOOKS: u32 = 500;
const KILL_PAUSE: Duration = Duration::from_millis(10);
/// The period of `cpu.max`, in microseconds.
const PERIOD: u64 = 100_000;

/// This host's control groups: `<mount>/warren/<host>/<vm>`.
#[derive(Clone, Debug)]
pub struct Cgroups {
    root: PathBuf,
    /// Controllers that limits can be set by.
    controllers: Vec<&'static str>,
}

impl Cgroups {
    /// Makes this host's group; nothing where the machine has no cgroup v2.
    pub fn open(host: &HostId) -> Option<Self> {
        let mount = mount_point(&fs::read_to_string("/proc/self/mountinfo").ok()?)?;
        Self::below(&mount, host)
            .inspect_err(|error| tracing::warn!(%error, mount = %mount.display(), "control groups cannot be used"))
            .ok()
    }

    fn below(mount: &Path, host: &HostId) -> io::Result<Self> {
        let root = mount.join("warren").join(host.as_str());
        fs::create_dir_all(&root)?;
        let offered = fs::read_to_string(mount.join("cgroup.controllers"))?;
        let mut controllers = Vec::new();
        for controller in CONTROLLERS {
            // Each group on the way hands the controller on; one that another hierarchy (v1) holds is not offered at all.
            let handed = offered.split_whitespace().any(|offer| offer == controller)
                && [mount, &mount.join("warren"), &root]
                    .iter()
                    .all(|group| fs::write(group.join("cgroup.subtree_control"), format!("+{controller}")).is_ok());
            if handed {
                controllers.push(controller);
            }
        }
        Ok(Self { root, controllers })
    }

    /// The controllers that are missing.
    pub fn missing(&self) -> Vec<&'static str> {
        CONTROLLERS.into_iter().filter(|controller| !self.controllers.contains(controller)).collect()
    }

    fn group(&self, vm: VmId) -> PathBuf {
        self.root.join(vm.to_string())
    }

    /// Makes a VM's group with its limits; what a child writes `0` into to enter it.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn enter(&self, spec: &VmSpec) -> io::Result<OwnedFd> {
        let group = self.group(spec.id);
        match fs::create_dir(&group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        for (controller, file, value) in limits(spec) {
            let file = group.join(file);
            // Weights of disk traffic are there only where the kernel has a scheduler or a cost model for them.
            if self.controllers.contains(&controller) && (controller != "io" || file.exists()) {
                fs::write(file, value)?;
            }
        }
        Ok(fs::OpenOptions::new().write(true).open(group.join("cgroup.procs"))?.into())
    }

    /// Removes a VM's group; its absence is fine, and one that still has processes stays.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove(&self, vm: VmId) -> io::Result<()> {
        remove_group(&self.group(vm))
    }

    /// Ends every process in a VM's group, and waits until they are gone.
    ///
    /// # Errors
    /// The kernel refused, or they do not go.
    pub fn kill(&self, vm: VmId) -> io::Result<()> {
        let group = self.group(vm);
        fs::write(group.join("cgroup.kill"), "1")?;
        for _ in 0..KILL_LOOKS {
            // `populated` of cgroup.events counts zombies no more.
            if self.counter(vm, "cgroup.events", Some("populated")) == Some(0) {
                return Ok(());
            }
            std::thread::sleep(KILL_PAUSE);
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// The VMs that have a group.
    pub fn all(&self) -> Vec<VmId> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Removes this host's group with all groups in it that are empty, and the one above when no other host is in it.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove_all(&self) -> io::Result<()> {
        for vm in self.all() {
            self.remove(vm)?;
        }
        remove_group(&self.root)?;
        self.root.parent().map_or(Ok(()), remove_group)
    }

    /// A counter of a VM's group, e.g. `usage_usec` of `cpu.stat`, or the only number of `memory.current`.
    pub fn counter(&self, vm: VmId, file: &str, key: Option<&str>) -> Option<u64> {
        let text = fs::read_to_string(self.group(vm).join(file)).ok()?;
        match key {
            None => text.trim().parse().ok(),
            Some(key) => text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok()),
        }
    }

    /// All that can be read of a VM's group, for a postmortem.
    pub fn describe(&self, vm: VmId) -> String {
        let files = [
            "cpu.stat",
            "cpu.max",
            "memory.current",
            "memory.peak",
            "memory.max",
            "memory.events",
            "pids.current",
            "io.stat",
            "cgroup.procs",
        ];
        let read = files.into_iter().filter_map(|file| {
            let text = fs::read_to_string(self.group(vm).join(file)).ok()?;
            Some(format!("{file}:\n{text}"))
        });
        read.collect()
    }
}

fn limits(spec: &VmSpec) -> [(&'static str, &'static str, String); 5] {
    let cpus = u64::from(spec.cpus);
    [
        // Half a processor more than the guest has: the VMM's own threads move its bytes.
        ("cpu", "cpu.max", format!("{} {PERIOD}", cpus * PERIOD + PERIOD / 2)),
        ("cpu", "cpu.weight", (100 * cpus).min(10_000).to_string()),
        ("memory", "memory.max", (spec.memory.bytes() + MEMORY_OVERHEAD).to_string()),
        ("io", "io.weight", (100 * cpus).min(10_000).to_string()),
        ("pids", "pids.max", (PIDS + 4 * cpus).to_string()),
    ]
}

fn remove_group(group: &Path) -> io::Result<()> {
    match fs::remove_dir(group) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// Where cgroup v2 is mounted, by proc_pid_mountinfo(5).
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == "cgroup2").then(|| PathBuf::from(before.split(' ').nth(4).unwrap_or_default()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_point_is_found_beside_v1() {
        let text = "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                    31 25 0:27 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(text), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point("1 2 3:4 / / rw - ext4 /dev/sda rw\n"), None);
    }
}

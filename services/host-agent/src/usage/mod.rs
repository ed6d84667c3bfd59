//! **Usage**: what VMs take of this host, measured from outside: their guests are not asked.
//!
//! | what | from | where that is missing |
//! | --- | --- | --- |
//! | processor time | `cpu.stat` of the control group, which cgroup v2 keeps without its controller too | `/proc/<pid>/stat` |
//! | memory | `memory.current` of the control group | the resident set in `/proc/<pid>/statm` |
//! | disk operations | QEMU's own counters (`query-blockstats`): what the guest did, whatever the page cache made of it | nothing |
//! | disk space | the blocks of the disks' files | |
//! | network | the tap's counters | nothing |
//!
//! Control group and tap outlive a VMM: what they showed at its start ([`Base`]) is taken off.

mod meter;
mod process;

use std::{os::unix::fs::MetadataExt, path::PathBuf};

use contract::{
    VmId,
    usage::{Counters, Traffic},
};
use serde::{Deserialize, Serialize};

use crate::{capability::DataDisks, cgroup::Cgroups, handles::Handles, vm::Deps};

pub use meter::Meter;

/// What the counters that outlive a VMM showed when it was spawned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    cpu_usec: u64,
    network: Traffic,
}

impl Base {
    /// What they show now. Blocking.
    pub fn now(deps: &Deps, vm: VmId, tap: &str) -> Self {
        let network = deps.lab.traffic().ok().and_then(|all| all.get(tap).copied());
        let cpu = deps.cgroups.as_ref().and_then(|cgroups| grouped_cpu(cgroups, vm));
        Self { cpu_usec: cpu.unwrap_or_default(), network: network.unwrap_or_default() }
    }
}

/// One VM as it is measured.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The VM.
    pub vm: VmId,
    /// Its directory.
    pub dir: PathBuf,
    /// Its tap.
    tap: String,
    /// The files of its disks.
    disks: Vec<PathBuf>,
    /// Its VMM, while one runs.
    vmm: Option<Vmm>,
}

#[derive(Clone, Copy, Debug)]
struct Vmm {
    pid: u32,
    spawned_at_ms: u64,
    base: Base,
}

impl Subject {
    /// The VM with these handles, whose VMM has that process id while it runs.
    pub fn new(deps: &Deps, handles: &Handles, pid: Option<u32>) -> Self {
        let (vm, dir) = (handles.spec.id, deps.dirs.dir(handles.spec.id));
        let mut disks = DataDisks::new(&deps.state_dir).files(&dir, &handles.spec.features.disks);
        disks.push(dir.join(&handles.disk.file));
        let vmm = pid.zip(handles.vmm.as_ref());
        let vmm = vmm.map(|(pid, vmm)| Vmm { pid, spawned_at_ms: vmm.spawned_at_ms, base: vmm.base });
        Self { vm, dir, tap: handles.tap.clone(), disks, vmm }
    }

    /// Whether a VMM of it runs.
    pub fn runs(&self) -> bool {
        self.vmm.is_some()
    }

    /// The bytes its disks take. Blocking.
    pub fn allocated(&self) -> u64 {
        // A block of stat(2) has 512 bytes, whatever the filesystem's own have.
        self.disks.iter().filter_map(|file| Some(std::fs::metadata(file).ok()?.blocks() * 512)).sum()
    }

    /// The counters of its VMM but the disks'; nothing when none runs, or it has just ended. Blocking.
    pub fn counters(
        &self,
        cgroups: Option<&Cgroups>,
        taps: &std::collections::HashMap<String, Traffic>,
    ) -> Option<Counters> {
        let vmm = self.vmm?;
        let grouped = cgroups.and_then(|cgroups| grouped_cpu(cgroups, self.vm));
        let cpu_usec = match grouped {
            Some(counted) => counted.saturating_sub(vmm.base.cpu_usec),
            None => process::cpu_usec(vmm.pid)?,
        };
        let memory = cgroups.and_then(|cgroups| cgroups.counter(self.vm, "memory.current", None));
        let memory_bytes = match memory {
            Some(bytes) => bytes,
            None => process::resident_bytes(vmm.pid)?,
        };
        let network = taps.get(&self.tap).map(|now| since(*now, vmm.base.network));
        Some(Counters { spawned_at_ms: vmm.spawned_at_ms, cpu_usec, memory_bytes, disk: None, network })
    }
}

fn grouped_cpu(cgroups: &Cgroups, vm: VmId) -> Option<u64> {
    cgroups.counter(vm, "cpu.stat", Some("usage_usec "))
}

/// A tap that was made anew in between counts from nothing.
fn since(now: Traffic, base: Traffic) -> Traffic {
    let anew = now.received_bytes < base.received_bytes || now.sent_bytes < base.sent_bytes;
    let base = if anew { Traffic::default() } else { base };
    Traffic {
        received_bytes: now.received_bytes - base.received_bytes,
        received_packets: now.received_packets.saturating_sub(base.received_packets),
        sent_bytes: now.sent_bytes - base.sent_bytes,
        sent_packets: now.sent_packets.saturating_sub(base.sent_packets),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_counts_from_the_vmms_start_and_a_new_one_from_nothing() {
        let at = |received, sent| Traffic {
            received_bytes: received,
            received_packets: received / 10,
            sent_bytes: sent,
            sent_packets: sent / 10,
        };
        assert_eq!(since(at(500, 700), at(100, 200)), at(400, 500));
        assert_eq!(since(at(50, 700), at(100, 200)), at(50, 700));
    }
}

//! What VMs **use** of their hosts: counters that only grow while one VMM runs, with the time at which they were read, so that
//! whoever has two samples knows the rates between them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    agent::HostVmState,
    deadline,
    error::ApiError,
    id::{HostId, VmId},
    label::LabelSelector,
    name::VmName,
    operation::default_limit,
    size::MebiBytes,
    verb::verbs,
    vm::VmState,
};

/// What the guest read from its disks and wrote to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskIo {
    /// Bytes read.
    pub read_bytes: u64,
    /// Reads.
    pub read_operations: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Writes.
    pub write_operations: u64,
}

/// What the guest received and sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Traffic {
    /// Bytes received by the guest.
    pub received_bytes: u64,
    /// Packets received by the guest.
    pub received_packets: u64,
    /// Bytes sent by the guest.
    pub sent_bytes: u64,
    /// Packets sent by the guest.
    pub sent_packets: u64,
}

/// Counters of one VMM since its start. Those of another start begin anew: `spawned_at_ms` tells them apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counters {
    /// When the VMM was started, Unix time in milliseconds.
    pub spawned_at_ms: u64,
    /// Processor time of the VMM in microseconds: the guest's, and what its devices took.
    pub cpu_usec: u64,
    /// Memory of the host it takes now, in bytes.
    pub memory_bytes: u64,
    /// Its disks; absent while the VMM does not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskIo>,
    /// Its network; absent where its tap cannot be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Traffic>,
}

/// What one VM uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sample {
    /// The VM.
    pub vm: VmId,
    /// Where it stands on its host.
    pub state: HostVmState,
    /// When this was measured, Unix time of the host in milliseconds.
    pub at_ms: u64,
    /// The bytes of the host's filesystem its disks take; less than their size, as they are sparse.
    pub disk_allocated_bytes: u64,
    /// What its VMM took since its start; absent while none runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<Counters>,
}

/// Asks one host what its VMs use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SampleRequest {
    /// Only these; left out, all of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vms: Option<Vec<VmId>>,
}

/// What the VMs of one host use.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Samples {
    /// In no order; one that is not there is left out.
    pub samples: Vec<Sample>,
}

/// Asks what VMs use.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UsageRequest {
    /// Only this one, by name or id; excludes the other choices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Only those on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// Only those with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<LabelSelector>,
    /// How many at the most (1 to 500; 100 when left out).
    #[serde(default = "default_limit")]
    pub limit: u32,
    /// Only names after this one: the last name of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<VmName>,
}

/// A VM and what it uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VmUsage {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// Where it stands.
    pub state: VmState,
    /// Its host.
    pub host: HostId,
    /// Its virtual CPUs.
    pub cpus: u32,
    /// Its memory.
    pub memory: MebiBytes,
    /// Its root disk.
    pub disk: MebiBytes,
    /// What its host measured; absent when the host did not answer, or has nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
}

/// A host that did not answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SilentHost {
    /// Which.
    pub host: HostId,
    /// Why.
    pub error: ApiError,
}

/// A page of VMs and what they use.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct UsageReply {
    /// By name.
    pub vms: Vec<VmUsage>,
    /// The hosts of these VMs that did not answer in time.
    pub silent: Vec<SilentHost>,
    /// Whether there is more: ask again with `after` set to the last name here.
    pub more: bool,
}

verbs! {
    /// Tells what VMs use of their hosts: processor time, memory, disk and network.
    Usage = "warren.vm.usage", false, deadline::QUICK, UsageRequest => UsageReply;
}

//! **VMs** on a host: what they are to be, and what is true of them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fence, VmKernel};
use crate::{
    feature::{Features, PublishedPort},
    guest::GuestFacts,
    id::{ImageId, VmId},
    image::ImageConfig,
    name::VmName,
    size::MebiBytes,
};

/// All a host needs to know to run a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Its id.
    pub id: VmId,
    /// Its name, which becomes the guest's host name.
    pub name: VmName,
    /// The image its disk is a clone of.
    pub image: ImageId,
    /// What the image's author asked to be run.
    pub config: ImageConfig,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: MebiBytes,
    /// Disk.
    pub disk: MebiBytes,
    /// Its address with the subnet's prefix length.
    #[schemars(with = "String")]
    pub address: Ipv4Net,
    /// Gateway and name server.
    pub gateway: Ipv4Addr,
    /// `02:…`.
    pub mac: String,
    /// The lab's DNS domain.
    pub domain: String,
    /// OpenSSH public keys that may log in.
    pub ssh_keys: Vec<String>,
    /// What it has beside its size.
    #[serde(default)]
    pub features: Features,
    /// The kernel of the lab's that it boots, which is on the host; left out, what `features` says of a kernel is the host's to look up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<VmKernel>,
}

/// Makes a VM's directory, handles, disk, tap and config drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProvisionRequest {
    /// The operation.
    pub fence: Fence,
    /// The VM.
    pub spec: VmSpec,
}

/// A provisioned VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Provisioned {
    /// The public half of its ssh host key, `ssh-ed25519 …`; the private half stays on the host.
    pub ssh_host_key: String,
}

/// Names a VM in a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmCommand {
    /// The operation.
    pub fence: Fence,
    /// The VM.
    pub vm: VmId,
    /// How long to hold the reply while nothing changes, in milliseconds; 0 answers at once.
    #[serde(default)]
    pub wait_ms: u64,
}

/// Changes what a VM is to be: at once what can be, such as ports and a larger disk, the rest from its next start on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdjustRequest {
    /// The operation.
    pub fence: Fence,
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: MebiBytes,
    /// Disk.
    pub disk: MebiBytes,
    /// Ports of the host that lead into it; these change at once. Left out by services that know of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PublishedPort>>,
}

/// A changed VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Adjusted {
    /// The size of its disk now: never less than it was, as a disk only grows. Left out by agents that know of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<MebiBytes>,
    /// What did not take effect at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Stops a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// The operation.
    pub fence: Fence,
    /// The VM.
    pub vm: VmId,
    /// How long the guest has to power itself off before its VMM is ended, in milliseconds; 0 ends it at once.
    pub grace_ms: u64,
    /// How long to hold the reply while it is still on, in milliseconds.
    pub wait_ms: u64,
}

/// Where a VM stands on its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostVmState {
    /// The agent has no directory of it.
    Absent,
    /// Its directory is there, no VMM was started or the last one ended as asked or by the guest's power-off.
    Off,
    /// Its VMM runs, its guest has not been ready yet.
    Booting,
    /// Its guest is ready.
    Ready,
    /// Its guest was ready, and its processors stand still.
    Paused,
    /// Its VMM ended by itself with an error, was killed by somebody, or its guest did not get ready in time.
    Failed,
}

/// What is true of a VM on its host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VmObservation {
    /// The VM.
    pub vm: VmId,
    /// Where it stands.
    pub state: HostVmState,
    /// The highest epoch the agent has seen for it.
    pub epoch: i64,
    /// Its VMM's process id, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What the guest said of itself when it was ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestFacts>,
    /// Why it failed or ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The console's last lines, when it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_tail: Option<String>,
}

/// Every VM the agent has a directory of.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Observations {
    /// In no order.
    pub vms: Vec<VmObservation>,
}

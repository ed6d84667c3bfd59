//! VMs: requests to `vm-lifecycle` and what it says of them.

mod kept;
mod state;

use std::net::Ipv4Addr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    agent::VmKernel,
    change::{SetReply, SetRequest},
    deadline,
    feature::Features,
    host::Empty,
    id::{HostId, ImageId, OperationId, VmId},
    idle::{IdleAction, IdleLimit},
    lab::LabName,
    label::{LabelSelector, Labels},
    name::VmName,
    operation::{Operation, default_limit, default_wait_ms},
    size::MebiBytes,
    verb::verbs,
};
pub use kept::{DiskRef, KeptDisk, KeptDisks};
pub use state::{RestartPolicy, VmState};

/// The fewest and the most virtual CPUs of one VM.
pub const CPUS: std::ops::RangeInclusive<u32> = 1..=64;
/// The least and the most memory of one VM: Debian's kernel and an initramfs need about 100 MiB.
pub const MEMORY: std::ops::RangeInclusive<MebiBytes> = MebiBytes(96)..=MebiBytes(1024 * 1024);
/// The least and the most disk of one VM; it is never smaller than its image.
pub const DISK: std::ops::RangeInclusive<MebiBytes> = MebiBytes(16)..=MebiBytes(16 * 1024 * 1024);
/// How many ssh keys one VM takes, and how long each may be in bytes.
pub const SSH_KEYS_MAX: usize = 64;
/// The longest ssh public key line, in bytes (an RSA-16384 key has about 2800).
pub const SSH_KEY_BYTES_MAX: usize = 8192;

/// The shortest and the longest time to live, in seconds.
pub const TTL_SECONDS: std::ops::RangeInclusive<u64> = 10..=365 * 24 * 3600;

/// Creates and starts a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRequest {
    /// Its name.
    pub name: VmName,
    /// The name or id of an image, or a registry reference, which is pulled first when it is missing.
    pub image: String,
    /// Virtual CPUs (1 to 64).
    #[serde(default = "default_cpus")]
    pub cpus: u32,
    /// Memory (96M to 1T).
    #[serde(default = "default_memory")]
    pub memory: MebiBytes,
    /// Disk (16M to 16T, never less than the image); the filesystem grows to it.
    #[serde(default = "default_disk")]
    pub disk: MebiBytes,
    /// The host to run on; left out, the one with most room among those that hold the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// OpenSSH public keys that may log in over the VM's network address.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// What to group it by.
    #[serde(default)]
    pub labels: Labels,
    /// What happens when it ends although nobody stopped it.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Delete it this many seconds after its create (10 to a year).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Do `idle_action` once nobody has used it for this many seconds (10 to a year); what use is, [`crate::idle`] says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u64>,
    /// What happens then: `stop` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_action: Option<IdleAction>,
    /// Refuse to delete it until this is taken back. Excludes a time to live, and `delete` as `idle_action`.
    #[serde(default)]
    pub deletion_protection: bool,
    /// What it has beside its size.
    #[serde(flatten)]
    pub features: Features,
    /// Hold the reply until the VM is running.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

impl CreateRequest {
    /// A VM of that name and image with nothing else asked for.
    pub fn new(name: VmName, image: impl Into<String>) -> Self {
        Self {
            name,
            image: image.into(),
            cpus: default_cpus(),
            memory: default_memory(),
            disk: default_disk(),
            host: None,
            ssh_keys: Vec::new(),
            labels: Labels::new(),
            restart: RestartPolicy::default(),
            ttl_seconds: None,
            idle_seconds: None,
            idle_action: None,
            deletion_protection: false,
            features: Features::default(),
            wait: false,
            timeout_ms: default_wait_ms(),
        }
    }
}

/// One virtual CPU.
pub fn default_cpus() -> u32 {
    1
}

/// 256 MiB.
pub fn default_memory() -> MebiBytes {
    MebiBytes(256)
}

/// 2 GiB.
pub fn default_disk() -> MebiBytes {
    MebiBytes(2048)
}

/// Names one VM, by name or id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmRef {
    /// Its name or id.
    pub vm: String,
}

/// Starts, restarts or deletes a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LifecycleRequest {
    /// Its name or id.
    pub vm: String,
    /// End the VMM at once instead of asking the guest to power off (stop, restart).
    #[serde(default)]
    pub force: bool,
    /// Hold the reply until it is done.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// Lists VMs by name, without their `env` and `user_data`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// Only those in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<VmState>,
    /// Only those on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// Only those with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<LabelSelector>,
    /// Only those of this lab.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lab: Option<LabName>,
    /// Only those made from this image: its id, or its name at the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// How many at the most (1 to 500; 100 when left out).
    #[serde(default = "default_limit")]
    pub limit: u32,
    /// Only names after this one: the last name of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<VmName>,
}

/// A VM as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// Where it stands.
    pub state: VmState,
    /// Its host.
    pub host: HostId,
    /// Whether that host is silent, so that `state` is the last one known.
    pub host_down: bool,
    /// The image it was made from.
    pub image: ImageId,
    /// That image's name at the time.
    pub image_name: String,
    /// That image's digest, which stays although the name may have moved on. Left out by services that do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// The kernel of the lab's that it boots, for life. Left out where that is its host's own or one of its host's directories (`kernel`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted: Option<VmKernel>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: MebiBytes,
    /// Disk.
    pub disk: MebiBytes,
    /// Its address for life.
    pub address: Ipv4Addr,
    /// Its MAC address for life.
    pub mac: String,
    /// `<name>.<domain>`.
    pub fqdn: String,
    /// Its ssh host key, `ssh-ed25519 …`, fixed at create.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_host_key: Option<String>,
    /// Where guest-agent's ssh server listens on `address`: 22, or 2222 beside an image's own sshd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_port: Option<u16>,
    /// The lab whose file it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lab: Option<LabName>,
    /// What it is grouped by.
    #[serde(default)]
    pub labels: Labels,
    /// What happens when it ends although nobody stopped it.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// How often in a row it was started again by that policy.
    #[serde(default)]
    pub restarts: u32,
    /// When it will be started again by that policy.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub restart_at: Option<OffsetDateTime>,
    /// When it will be deleted.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub expires_at: Option<OffsetDateTime>,
    /// How long it may be idle, and what happens then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_limit: Option<IdleLimit>,
    /// When it was in use last, to some seconds; told of one that runs.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub active_at: Option<OffsetDateTime>,
    /// Whether a delete is refused.
    #[serde(default)]
    pub deletion_protection: bool,
    /// What it has beside its size.
    #[serde(flatten)]
    pub features: Features,
    /// The operation that holds the VM claim now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
    /// The operations that wait for that claim, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queued: Vec<OperationId>,
    /// Why it is `failed`, or stopped by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was reserved.
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String")]
    pub created_at: OffsetDateTime,
    /// When its guest was ready last.
    #[serde(default, with = "time::serde::rfc3339::option")]
    #[schemars(with = "Option<String>")]
    pub ready_at: Option<OffsetDateTime>,
}

/// A page of VMs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct VmList {
    /// The page.
    pub vms: Vec<Vm>,
    /// Whether there is more: ask again with `after` set to the last name here.
    pub more: bool,
}

verbs! {
    /// Lists the data disks that outlive their VMs.
    DiskList = "warren.vm.disk_list", false, deadline::QUICK, Empty => KeptDisks;
    /// Deletes one that no VM has, with all that is on it.
    DiskDelete = "warren.vm.disk_delete", true, deadline::AGENT, DiskRef => Empty;
    /// Creates and starts a VM. Operation `vm.create`; its result names the VM.
    Create = "warren.vm.create", true, deadline::WAITING, CreateRequest => Operation;
    /// Lists VMs.
    List = "warren.vm.list", false, deadline::QUICK, ListRequest => VmList;
    /// Shows one VM.
    Get = "warren.vm.get", false, deadline::QUICK, VmRef => Vm;
    /// Starts a stopped VM. Operation `vm.start`.
    Start = "warren.vm.start", true, deadline::WAITING, LifecycleRequest => Operation;
    /// Stops a VM: its guest powers off, or with `force` its VMM is ended. Operation `vm.stop`.
    Stop = "warren.vm.stop", true, deadline::WAITING, LifecycleRequest => Operation;
    /// Stops and starts a VM under one claim. Operation `vm.restart`.
    Restart = "warren.vm.restart", true, deadline::WAITING, LifecycleRequest => Operation;
    /// Pauses a running VM; it keeps its memory and its claim on the host. Operation `vm.pause`.
    Pause = "warren.vm.pause", true, deadline::WAITING, LifecycleRequest => Operation;
    /// Resumes a paused VM and sets its clock. Operation `vm.resume`.
    Resume = "warren.vm.resume", true, deadline::WAITING, LifecycleRequest => Operation;
    /// Changes a VM, all or nothing, and tells what that means field by field. Operation `vm.set`.
    Set = "warren.vm.set", true, deadline::WAITING, SetRequest => SetReply;
    /// Deletes a VM with its disk, running or not. Operation `vm.delete`.
    Delete = "warren.vm.delete", true, deadline::WAITING, LifecycleRequest => Operation;
}

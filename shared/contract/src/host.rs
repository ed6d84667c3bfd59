//! The registry of hosts, kept by `vm-lifecycle`; host-agents register and report here.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    agent::VmObservation,
    deadline,
    id::{HostId, VmId},
    name::KernelName,
    size::MebiBytes,
    verb::verbs,
};

/// What a host offers to VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// Virtual CPUs, overcommit included.
    pub cpus: u32,
    /// Memory for guests.
    pub memory: MebiBytes,
    /// Disk space for VMs' disks.
    pub disk: MebiBytes,
}

/// Sent by a host-agent when it starts, and again whenever a heartbeat is refused.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// The host.
    pub host: HostId,
    /// Fresh for each start of the agent; the newest one speaks for the host.
    pub incarnation: Uuid,
    /// What it offers.
    pub capacity: Capacity,
    /// The VMM driver in use: `qemu-kvm`, `qemu-tcg`, `firecracker`.
    pub vmm: String,
    /// The agent's version.
    pub version: String,
    /// Every VM the agent has a directory of.
    pub vms: Vec<VmObservation>,
    /// The kernels VMs may ask for by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<KernelName>,
}

/// What the host is to be in this lab.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Registered {
    /// The host's share of the lab's network; the bridge has its first address.
    #[schemars(with = "String")]
    pub subnet: Ipv4Net,
    /// The bridge's address: the VMs' gateway and name server.
    pub gateway: Ipv4Addr,
    /// The lab's DNS domain.
    pub domain: String,
    /// VMs with a directory that the lab has no row of: to be stopped by the agent.
    pub orphans: Vec<VmId>,
}

/// Sent every [`deadline::HEARTBEAT`].
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatRequest {
    /// The host.
    pub host: HostId,
    /// As registered.
    pub incarnation: Uuid,
    /// What it offers now.
    pub capacity: Capacity,
    /// The kernels VMs may ask for by name; left out by agents that know of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels: Option<Vec<KernelName>>,
}

/// Answers a heartbeat.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct HeartbeatReply {
    /// Not known (any more): register again.
    pub register: bool,
}

/// Reports what became of VMs on a host outside of any command: a VMM that ended, a guest that powered off.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReportRequest {
    /// The host.
    pub host: HostId,
    /// As registered.
    pub incarnation: Uuid,
    /// What is true now. Applied only where its epoch is not older than the row's.
    pub vms: Vec<VmObservation>,
}

/// Whether a host takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Heard of within [`deadline::HOST_DOWN`].
    Up,
    /// Silent for longer than that.
    Down,
}

/// A host as clients see it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// Whether it takes part.
    pub state: HostState,
    /// What it offers.
    pub capacity: Capacity,
    /// What VMs hold of that.
    pub allocated: Capacity,
    /// Its share of the lab's network.
    #[schemars(with = "String")]
    pub subnet: Ipv4Net,
    /// The VMM driver in use.
    pub vmm: String,
    /// Its agent's version.
    pub version: String,
    /// The kernels VMs may ask for by name.
    #[serde(default)]
    pub kernels: Vec<KernelName>,
    /// How many VMs it has.
    pub vms: u32,
    /// When it was heard of last.
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String")]
    pub last_seen: OffsetDateTime,
}

/// Takes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Empty {}

/// All hosts (a lab has tens of them, so the list has no pages).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct HostList {
    /// By id.
    pub hosts: Vec<Host>,
}

verbs! {
    /// Registers a host; for host-agents.
    Register = "warren.host.register", true, deadline::QUICK, RegisterRequest => Registered;
    /// Tells that a host lives; for host-agents.
    Heartbeat = "warren.host.heartbeat", true, deadline::QUICK, HeartbeatRequest => HeartbeatReply;
    /// Reports VMs that changed by themselves; for host-agents.
    Report = "warren.host.report", true, deadline::QUICK, ReportRequest => Empty;
    /// Lists the lab's hosts.
    List = "warren.host.list", false, deadline::QUICK, Empty => HostList;
}

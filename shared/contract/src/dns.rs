//! Names of VMs as a name server needs them: who has which name and address, and for how long that may be believed.
//!
//! A VM's address is its own from its reservation until its row is gone, and rests then before it is given again. So what a
//! reply says of a VM's address holds, counted from the moment of the request, for as long as addresses rest
//! ([`Names::rest_ms`]), whatever happens afterwards.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    deadline,
    id::{HostId, VmId},
    name::VmName,
    verb::verbs,
};

/// The most VMs of one page: some 150 bytes each, so well below what a NATS message holds.
pub const PAGE_MAX: u32 = 1000;

/// How many VMs, names and addresses one [`ResolveRequest`] may ask for in all.
pub const RESOLVE_MAX: usize = 256;

/// A VM as DNS knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NamedVm {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its host.
    pub host: HostId,
    /// The name of the image it was made from, at the time.
    pub image: String,
}

/// Asks for a page of all VMs' names, in the order of their ids, which never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NamesRequest {
    /// How many at the most (1 to 1000; 500 when left out).
    #[serde(default = "default_page")]
    pub limit: u32,
    /// Only ids after this one: the last id of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<VmId>,
}

fn default_page() -> u32 {
    500
}

impl Default for NamesRequest {
    fn default() -> Self {
        Self { limit: default_page(), after: None }
    }
}

/// Asks for single VMs, by what is known of them; 1 to 256 in all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// By id.
    #[serde(default)]
    pub vms: Vec<VmId>,
    /// By name.
    #[serde(default)]
    pub names: Vec<VmName>,
    /// By address.
    #[serde(default)]
    pub addresses: Vec<Ipv4Addr>,
}

/// What there is, as of one moment between request and reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Names {
    /// The VMs, by id. What was asked for and is not among them does not exist.
    pub vms: Vec<NamedVm>,
    /// Whether there are more with higher ids; only of a page.
    pub more: bool,
    /// The lab's DNS domain.
    pub domain: String,
    /// Where the lab's addresses come from: its network, and the subnets of hosts that joined under another one.
    #[schemars(with = "Vec<String>")]
    pub networks: Vec<Ipv4Net>,
    /// How long an address that was given back rests before it is given again, in milliseconds.
    pub rest_ms: u64,
}

verbs! {
    /// Lists all VMs' names and addresses, for name servers.
    ListNames = "warren.host.names", false, deadline::QUICK, NamesRequest => Names;
    /// Tells which VMs have these ids, names or addresses now, for name servers.
    Resolve = "warren.host.resolve", false, deadline::QUICK, ResolveRequest => Names;
}

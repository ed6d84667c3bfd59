//! The uplink: a veth pair between the lab's namespace and the machine's, with translation on both sides.

use std::net::Ipv4Addr;

use contract::HostId;
use ipnet::Ipv4Net;
use sha2::{Digest, Sha256};

use super::{
    NetError, firewall,
    namespace::Namespace,
    system,
    worker::{self, Worker},
};

/// The machine's end: `wru` and eight digits of the host's name, as an interface name is too short for all of it.
fn interface(host: &HostId) -> String {
    format!("wru{}", &hex::encode(Sha256::digest(host.as_str()))[..8])
}

fn table(host: &HostId) -> String {
    format!("warren-{host}")
}

/// The machine's and the lab's address: the first two of the network.
fn addresses(network: Ipv4Net) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let mut hosts = network.hosts();
    Some((hosts.next()?, hosts.next()?))
}

/// Makes what is missing of the uplink.
pub(super) fn ensure(namespace: &Namespace, lab: &Worker, host: &HostId, network: Ipv4Net) -> Result<(), NetError> {
    let Some((machine, inner)) = addresses(network) else {
        return Err(NetError::Unfit(format!("WARREN_UPLINK_NETWORK {network} has no room for two addresses")));
    };
    let (own, prefix) = (interface(host), network.prefix_len());
    let file = namespace.open().map_err(system("the lab's namespace is not there"))?;
    worker::here(|inside| {
        if inside.links.find(&own)?.is_none() {
            inside.links.pair(&own, firewall::UPLINK, &file)?;
        }
        // Nothing passes before the rules are there.
        firewall::ensure_machine(&mut inside.nft, &table(host), &own, network)?;
        inside.links.address(&own, machine, prefix)?;
        inside.links.up(&own)?;
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").map_err(system("forwarding cannot be switched on"))
    })?;
    lab.run(move |inside| {
        inside.links.address(firewall::UPLINK, inner, prefix)?;
        inside.links.up(firewall::UPLINK)?;
        inside.links.default_route(machine)
    })
}

/// Removes the machine's end, which takes the other with it, and the rules.
pub(super) fn remove(host: &HostId) -> Result<(), NetError> {
    worker::here(|inside| {
        inside.links.remove(&interface(host))?;
        firewall::remove_machine(&mut inside.nft, &table(host))
    })
}

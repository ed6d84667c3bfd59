//! The guard: what comes in on a tap carries that VM's MAC and IPv4 address, or is dropped at the bridge. So a VM that takes
//! another's address or MAC reaches nobody, and misleads neither ARP nor the bridge's own table. Labs speak IPv4 and ARP only.

use std::net::Ipv4Addr;

use contract::agent::VmSpec;

use super::{NetError, TAP_PREFIX, firewall};

/// Who may speak on a tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// The tap.
    pub tap: String,
    /// The VM's MAC address.
    pub mac: String,
    /// The VM's address.
    pub address: Ipv4Addr,
}

impl Guarded {
    /// The VM with that tap.
    pub fn new(tap: &str, spec: &VmSpec) -> Self {
        Self { tap: tap.to_owned(), mac: spec.mac.clone(), address: spec.address.addr() }
    }

    fn elements(&self, verb: &str) -> String {
        let Self { tap, mac, address } = self;
        format!(
            "{verb} element bridge warren macs {{ \"{tap}\" . {mac} }}\n\
             {verb} element bridge warren guests {{ \"{tap}\" . {mac} . {address} }}\n"
        )
    }
}

/// The rules, with these guests let through beside those that are already. One transaction: a running VM is not cut off
/// meanwhile.
pub(super) fn rules(guests: &[Guarded]) -> String {
    let mut rules = format!(
        "table bridge warren {{\n\
           set macs {{ type ifname . ether_addr; }}\n\
           set guests {{ type ifname . ether_addr . ipv4_addr; }}\n\
           chain guarded {{ type filter hook prerouting priority -300; policy accept; }}\n\
         }}\n\
         flush chain bridge warren guarded\n\
         table bridge warren {{\n\
           chain guarded {{\n\
             iifname != \"{TAP_PREFIX}*\" accept\n\
             iifname . ether saddr != @macs drop\n\
             iifname . ether saddr . ip saddr @guests accept\n\
             arp htype 1 arp ptype ip iifname . arp saddr ether . arp saddr ip @guests accept\n\
             drop\n\
           }}\n\
         }}\n"
    );
    for guest in guests {
        rules.push_str(&guest.elements("add"));
    }
    rules
}

/// Lets a guest through; a repeat is fine. In the calling thread's namespace.
pub(super) fn admit(guest: &Guarded) -> Result<(), NetError> {
    firewall::apply(&guest.elements("add"))
}

/// Lets it through no more; its absence is fine, as adding comes first.
pub(super) fn expel(guest: &Guarded) -> Result<(), NetError> {
    firewall::apply(&(guest.elements("add") + &guest.elements("delete")))
}

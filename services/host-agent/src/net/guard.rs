//! The guard: what comes in on a tap carries that VM's MAC and IPv4 address, or is dropped at the bridge. So a VM that takes
//! another's address or MAC reaches nobody, and misleads neither ARP nor the bridge's own table. Labs speak IPv4 and ARP only.

use std::net::Ipv4Addr;

use contract::{agent::VmSpec, feature::NetworkMode};

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
    /// Whom it reaches.
    pub mode: NetworkMode,
}

impl Guarded {
    /// The VM with that tap.
    pub fn new(tap: &str, spec: &VmSpec) -> Self {
        Self { tap: tap.to_owned(), mac: spec.mac.clone(), address: spec.address.addr(), mode: spec.features.network }
    }

    fn elements(&self, verb: &str, mode: NetworkMode) -> String {
        let Self { tap, mac, address, .. } = self;
        let reach = match mode {
            NetworkMode::Isolated => format!(
                "{verb} element bridge warren isolated {{ \"{tap}\" }}\n{verb} element inet warren isolated {{ {address} }}\n"
            ),
            NetworkMode::Lab => String::new(),
            NetworkMode::Internet => format!("{verb} element inet warren outward {{ {address} }}\n"),
        };
        format!(
            "{verb} element bridge warren macs {{ \"{tap}\" . {mac} }}\n\
             {verb} element bridge warren guests {{ \"{tap}\" . {mac} . {address} }}\n{reach}"
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
           set isolated {{ type ifname; }}\n\
           chain bridged {{ type filter hook forward priority -200; policy accept; }}\n\
           chain guarded {{ type filter hook prerouting priority -300; policy accept; }}\n\
         }}\n\
         flush chain bridge warren guarded\n\
         flush chain bridge warren bridged\n\
         table bridge warren {{\n\
           chain guarded {{\n\
             iifname != \"{TAP_PREFIX}*\" accept\n\
             iifname . ether saddr != @macs drop\n\
             iifname . ether saddr . ip saddr @guests accept\n\
             arp htype 1 arp ptype ip iifname . arp saddr ether . arp saddr ip @guests accept\n\
             drop\n\
           }}\n\
           chain bridged {{\n\
             iifname @isolated drop\n\
             oifname @isolated drop\n\
           }}\n\
         }}\n"
    );
    for guest in guests {
        rules.push_str(&guest.elements("add", guest.mode));
    }
    rules
}

/// Lets a guest through; a repeat is fine. In the calling thread's namespace.
pub(super) fn admit(guest: &Guarded) -> Result<(), NetError> {
    firewall::apply(&guest.elements("add", guest.mode))
}

/// Lets it through no more; its absence is fine, as adding comes first.
pub(super) fn expel(guest: &Guarded) -> Result<(), NetError> {
    firewall::apply(&(guest.elements("add", guest.mode) + &guest.elements("delete", guest.mode)))
}

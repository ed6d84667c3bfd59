//! The place of a name: whose it is and what it can mean, told by the name alone. Letters count alike in either case (RFC 4343).

use std::net::Ipv4Addr;

use contract::VmName;
use hickory_proto::rr::Name;
use ipnet::Ipv4Net;

use super::zone::Zone;

/// Where a name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `<domain>`.
    Apex,
    /// `ns.dns.<domain>`, the name of this server. It is one label deeper than VMs are, so no VM can have it.
    Server,
    /// `dns.<domain>`, which may also be a VM: there is something below it.
    AboveServer,
    /// `<vm>.<domain>`.
    Vm(VmName),
    /// Below the domain, but no VM's name.
    Nothing,
    /// `<vm>`: a single label that a VM could have.
    Bare(VmName),
    /// `localhost` or below it (RFC 6761 §6.3).
    Localhost,
    /// In the reverse zone `zone`.
    Reverse {
        /// The zone's name.
        zone: Name,
        /// What is there.
        at: Reverse,
    },
    /// Anything else.
    Foreign,
}

/// What a name in a reverse zone means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reverse {
    /// The zone itself.
    Apex,
    /// Nothing of its own, but addresses below it.
    Above,
    /// That address.
    Address(Ipv4Addr),
    /// No address.
    Nothing,
}

impl Place {
    /// The place of a name in that lab.
    pub fn of(name: &Name, zone: &Zone) -> Self {
        let lower = name.to_lowercase();
        let labels: Vec<&[u8]> = lower.iter().collect();
        let domain: Vec<&[u8]> = zone.domain().split('.').map(str::as_bytes).collect();
        if let Some(own) = labels.strip_suffix(&domain[..]) {
            return match own {
                [] => Self::Apex,
                [b"ns", b"dns"] => Self::Server,
                [b"dns"] => Self::AboveServer,
                [label] => vm(label).map_or(Self::Nothing, Self::Vm),
                _ => Self::Nothing,
            };
        }
        if labels.last() == Some(&&b"localhost"[..]) {
            return Self::Localhost;
        }
        if let Some(reversed) = labels.strip_suffix(&[&b"in-addr"[..], b"arpa"]) {
            return reverse(reversed, zone.networks()).unwrap_or(Self::Foreign);
        }
        match labels[..] {
            [label] => vm(label).map_or(Self::Foreign, Self::Bare),
            _ => Self::Foreign,
        }
    }
}

fn vm(label: &[u8]) -> Option<VmName> {
    std::str::from_utf8(label).ok()?.parse().ok()
}

/// A name below `in-addr.arpa`, if it is in a reverse zone of one of these networks. A network is one zone where its prefix ends
/// with an octet, else as many as it has values of its last octet, so that nothing beyond the network is spoken for.
fn reverse(labels: &[&[u8]], networks: &[Ipv4Net]) -> Option<Place> {
    // Octets up to the first label that is none: whatever is below such a label is nowhere.
    let known: Vec<u8> = labels.iter().rev().map_while(|label| octet(label)).collect();
    let network = networks.iter().find(|network| {
        let depth = depth(network);
        known.len() >= depth && network.contains(&address(&known[..depth]))
    })?;
    let depth = depth(network);
    let at = match known.len() {
        count if count < labels.len() || count > 4 => Reverse::Nothing,
        4 => Reverse::Address(address(&known)),
        count if count == depth => Reverse::Apex,
        _ => Reverse::Above,
    };
    Some(Place::Reverse { zone: zone_name(&known[..depth])?, at })
}

/// How many octets name a zone of that network: at least one, as nobody owns all of `in-addr.arpa`.
fn depth(network: &Ipv4Net) -> usize {
    usize::from(network.prefix_len()).div_ceil(8).max(1)
}

fn address(octets: &[u8]) -> Ipv4Addr {
    let mut all = [0; 4];
    let count = octets.len().min(4);
    all[..count].copy_from_slice(&octets[..count]);
    all.into()
}

/// An octet as it stands in a name: without leading zeros.
fn octet(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    let value: u8 = text.parse().ok()?;
    (value.to_string() == text).then_some(value)
}

fn zone_name(octets: &[u8]) -> Option<Name> {
    let text: String = octets.iter().rev().map(|octet| format!("{octet}.")).collect();
    Name::from_ascii(text + "in-addr.arpa.").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str, domain: &str, network: &str) -> Place {
        Place::of(&Name::from_ascii(name).unwrap(), &Zone::new(domain, network.parse().unwrap()))
    }

    fn vm(name: &str) -> VmName {
        name.parse().unwrap()
    }

    #[test]
    fn names_below_the_domain_are_the_labs_and_those_beside_it_are_not() {
        let of = |name: &str| place(name, "lab.example", "10.77.0.0/16");
        assert_eq!(of("LAB.Example."), Place::Apex);
        assert_eq!(of("WEB.lab.example."), Place::Vm(vm("web")));
        assert_eq!(of("dns.lab.example."), Place::AboveServer);
        assert_eq!(of("ns.DNS.lab.example."), Place::Server);
        for name in ["a.web.lab.example.", "web_1.lab.example.", "*.lab.example.", "_tcp.lab.example."] {
            assert_eq!(of(name), Place::Nothing, "{name}");
        }
        assert_eq!(of("a\\.b.lab.example."), Place::Nothing, "a dot within a label");
        assert_eq!(of("web."), Place::Bare(vm("web")));
        for name in ["example.", "webxlab.example.", "lab.example.org.", "."] {
            assert!(matches!(of(name), Place::Foreign | Place::Bare(_)), "{name}");
        }
        assert_eq!(of("web.example."), Place::Foreign);
        assert_eq!(of("_x."), Place::Foreign);
        assert_eq!(of("LocalHost."), Place::Localhost);
        assert_eq!(of("a.localhost."), Place::Localhost);
    }

    #[test]
    fn addresses_of_the_network_are_the_labs_and_no_others() {
        let of = |name: &str, network| place(&format!("{name}.in-addr.arpa."), "warren", network);
        let at =
            |zone: &str, at| Place::Reverse { zone: Name::from_ascii(format!("{zone}.in-addr.arpa.")).unwrap(), at };
        let whole = "10.77.0.0/16";
        assert_eq!(of("2.0.77.10", whole), at("77.10", Reverse::Address([10, 77, 0, 2].into())));
        assert_eq!(of("77.10", whole), at("77.10", Reverse::Apex));
        assert_eq!(of("9.77.10", whole), at("77.10", Reverse::Above));
        for name in ["256.0.77.10", "x.77.10", "02.0.77.10", "1.2.0.77.10", "x.2.0.77.10"] {
            assert_eq!(of(name, whole), at("77.10", Reverse::Nothing), "{name}");
        }
        for name in ["10", "2.0.78.10", "78.10", "x.10", "8.8.8.8"] {
            assert_eq!(of(name, whole), Place::Foreign, "{name}");
        }
        // A prefix within an octet: each /24 of the /22 is a zone, the next is somebody else's.
        assert_eq!(of("2.3.77.10", "10.77.0.0/22"), at("3.77.10", Reverse::Address([10, 77, 3, 2].into())));
        assert_eq!(of("2.4.77.10", "10.77.0.0/22"), Place::Foreign);
        assert_eq!(of("77.10", "10.77.0.0/22"), Place::Foreign);
        // Below an octet's end each address is a zone of its own.
        assert_eq!(of("9.0.77.10", "10.77.0.8/29"), at("9.0.77.10", Reverse::Address([10, 77, 0, 9].into())));
        assert_eq!(of("7.0.77.10", "10.77.0.8/29"), Place::Foreign);
    }
}

//! The lab's nftables rules. One transaction replaces the rules of Warren's own tables and touches no others; what the sets hold
//! stays, so that no VM is cut off meanwhile.

use ipnet::Ipv4Net;

use super::{
    NetError,
    nft::{Batch, Chain, Family, Field, Hook, Key, Outcome, Rule, Set, Socket, Table},
};

/// The interface of the uplink inside the namespace.
pub(super) const UPLINK: &str = "uplink";
/// Priorities of `enum nf_ip_hook_priorities`.
const FILTER: i32 = 0;
const SOURCE_NAT: i32 = 100;
/// Where the name server listens.
const DNS: [u8; 2] = 53u16.to_be_bytes();
/// The first half of link-local addresses (RFC 3927).
const LINK_LOCAL: [u8; 2] = [169, 254];
/// ICMP's echo request (RFC 792).
const PING: [u8; 1] = [8];
/// TCP's and UDP's numbers among the layer-4 protocols.
const TRANSPORTS: [u8; 2] = [6, 17];

const LAB: Table<'static> = Table { family: Family::Inet, name: "warren" };
/// The addresses of VMs that reach what is outside the lab.
pub(super) const OUTWARD: Set<'static> = Set { table: LAB, name: "outward", keys: &[Key::Ipv4] };
/// The addresses of VMs that reach nobody.
pub(super) const ISOLATED: Set<'static> = Set { table: LAB, name: "isolated", keys: &[Key::Ipv4] };

fn filter<'a>(table: Table<'a>, name: &'a str, hook: Hook, accepts: bool) -> Chain<'a> {
    Chain { table, name, kind: "filter", hook, priority: FILTER, accepts }
}

fn leaving(table: Table<'_>) -> Chain<'_> {
    Chain { table, name: "leaving", kind: "nat", hook: Hook::Postrouting, priority: SOURCE_NAT, accepts: true }
}

/// The rules inside the lab's namespace: VMs reach each other and, those in `outward` through the uplink and translated,
/// the rest; of the host itself they reach the name server and nothing else, and those in `isolated` not even that.
pub(super) fn lab_rules(batch: &mut Batch, bridge: &str) {
    batch.table(LAB);
    batch.set(&OUTWARD);
    batch.set(&ISOLATED);
    let inside = || Rule::new().named(Field::Iifname, bridge);
    let isolated = || Rule::new().ipv4().among(&[Field::IpSaddr], ISOLATED.name).then(Outcome::Drop);

    let forwarded = filter(LAB, "forwarded", Hook::Forward, false);
    batch.chain(&forwarded);
    batch.rule(&forwarded, Rule::new().established().then(Outcome::Accept));
    batch.rule(&forwarded, Rule::new().ipv4().having(Field::IpDaddr16, &LINK_LOCAL).then(Outcome::Drop));
    batch.rule(&forwarded, isolated());
    batch.rule(&forwarded, inside().named(Field::Oifname, bridge).then(Outcome::Accept));
    let outward = inside().named(Field::Oifname, UPLINK).ipv4().among(&[Field::IpSaddr], OUTWARD.name);
    batch.rule(&forwarded, outward.then(Outcome::Accept));

    let incoming = filter(LAB, "incoming", Hook::Input, false);
    batch.chain(&incoming);
    batch.rule(&incoming, Rule::new().named(Field::Iifname, "lo").then(Outcome::Accept));
    batch.rule(&incoming, Rule::new().established().then(Outcome::Accept));
    batch.rule(&incoming, isolated());
    let ping = inside().ipv4().having(Field::L4Proto, &[1]).having(Field::IcmpType, &PING);
    batch.rule(&incoming, ping.then(Outcome::Accept));
    for transport in TRANSPORTS {
        let query = inside().having(Field::L4Proto, &[transport]).having(Field::DestinationPort, &DNS);
        batch.rule(&incoming, query.then(Outcome::Accept));
    }

    let leaving = leaving(LAB);
    batch.chain(&leaving);
    batch.rule(&leaving, Rule::new().named(Field::Oifname, UPLINK).then(Outcome::Masquerade));
}

fn machine(name: &str) -> Table<'_> {
    Table { family: Family::Ipv4, name }
}

/// Makes the rules on the machine's side of an uplink, in a table of its own: VMs go out translated, reach nothing of the machine
/// itself, and nobody opens connections to them.
pub(super) fn ensure_machine(socket: &mut Socket, table: &str, uplink: &str, network: Ipv4Net) -> Result<(), NetError> {
    let table = machine(table);
    let mut batch = Batch::new();
    batch.remove_table(table);
    batch.table(table);
    let leaving = leaving(table);
    batch.chain(&leaving);
    batch.rule(&leaving, Rule::new().not_named(Field::Oifname, uplink).sent_from(network).then(Outcome::Masquerade));
    for (chain, side) in [
        (filter(table, "incoming", Hook::Input, true), Field::Iifname),
        (filter(table, "forwarded", Hook::Forward, true), Field::Oifname),
    ] {
        batch.chain(&chain);
        batch.rule(&chain, Rule::new().named(side, uplink).established().then(Outcome::Accept));
        batch.rule(&chain, Rule::new().named(side, uplink).then(Outcome::Drop));
    }
    batch.commit(socket)
}

/// Removes them; their absence is fine.
pub(super) fn remove_machine(socket: &mut Socket, table: &str) -> Result<(), NetError> {
    let mut batch = Batch::new();
    batch.remove_table(machine(table));
    batch.commit(socket)
}

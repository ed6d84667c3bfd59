//! The guard: what comes in on a tap carries that VM's MAC and IPv4 address, or is dropped at the bridge. So a VM that takes
//! another's address or MAC reaches nobody, and misleads neither ARP nor the bridge's own table. Labs speak IPv4 and ARP only.
//!
//! The set `taken` says which taps are or were a VM's, and whose: from before it may speak until its tap is gone.

use std::{collections::HashMap, net::Ipv4Addr};

use contract::{VmId, agent::VmSpec, feature::NetworkMode};

use super::{
    NetError, TAP_PREFIX, firewall,
    nft::{Batch, Chain, Element, Family, Field, Hook, Key, Outcome, Rule, Set, Socket, Table},
};

const GUARD: Table<'static> = Table { family: Family::Bridge, name: "warren" };
/// Whose MAC address may be seen on which tap.
const MACS: Set<'static> = Set { table: GUARD, name: "macs", keys: &[Key::Ifname, Key::Ether] };
/// And with which address.
const GUESTS: Set<'static> = Set { table: GUARD, name: "guests", keys: &[Key::Ifname, Key::Ether, Key::Ipv4] };
/// The taps of VMs that reach nobody.
const ISOLATED: Set<'static> = Set { table: GUARD, name: "isolated", keys: &[Key::Ifname] };
/// The taps that are or were a VM's, with that VM's id as a comment.
const TAKEN: Set<'static> = Set { table: GUARD, name: "taken", keys: &[Key::Ifname] };

/// Before everything else a bridge does with a packet, and before `NF_BR_PRI_FILTER_BRIDGED`'s own.
const FIRST: i32 = -300;
const FILTER: i32 = -200;
/// Ethertypes.
const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
/// ARP for IPv4 over Ethernet: hardware 1, protocol 0x0800.
const ARP_KINDS: [u8; 4] = [0, 1, 0x08, 0x00];
/// How many guests one transaction lets through: what it takes stays far below the socket's room.
const GUESTS_AT_ONCE: usize = 100;

/// Who may speak on a tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// The VM.
    pub vm: VmId,
    /// Its tap.
    pub tap: String,
    /// Its MAC address.
    pub mac: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Whom it reaches.
    pub mode: NetworkMode,
}

impl Guarded {
    /// The VM with that tap.
    pub fn new(tap: &str, spec: &VmSpec) -> Self {
        let (mac, address, mode) = (spec.mac.clone(), spec.address.addr(), spec.features.network);
        Self { vm: spec.id, tap: tap.to_owned(), mac, address, mode }
    }

    /// What lets it speak.
    fn leave(&self) -> Result<[(Set<'static>, Element); 2], NetError> {
        let mac = parsed(&self.mac)?;
        let known = Element::new().interface(&self.tap).mac(mac);
        Ok([(MACS, known.clone()), (GUESTS, known.address(self.address))])
    }

    /// What tells its mode: each element, and whether its mode has it.
    fn reach(&self) -> [(Set<'static>, Element, bool); 3] {
        let (tap, address) = (Element::new().interface(&self.tap), Element::new().address(self.address));
        let alone = self.mode == NetworkMode::Isolated;
        [
            (ISOLATED, tap, alone),
            (firewall::ISOLATED, address.clone(), alone),
            (firewall::OUTWARD, address, self.mode == NetworkMode::Internet),
        ]
    }

    /// Lets it through, and takes back what an earlier VM with its address was allowed.
    fn admit(&self, batch: &mut Batch) -> Result<(), NetError> {
        batch.add(&TAKEN, &[Element::new().interface(&self.tap).comment(self.vm.to_string())]);
        for (set, element, has) in self.reach() {
            if has { batch.add(&set, &[element]) } else { batch.remove(&set, &[element]) }
        }
        for (set, element) in self.leave()? {
            batch.add(&set, &[element]);
        }
        Ok(())
    }
}

fn parsed(mac: &str) -> Result<[u8; 6], NetError> {
    let bytes: Option<Vec<u8>> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| NetError::Unfit(format!("{mac:?} is not a MAC address")))
}

/// The rules.
pub(super) fn rules(batch: &mut Batch) {
    batch.table(GUARD);
    for set in [MACS, GUESTS, ISOLATED, TAKEN] {
        batch.set(&set);
    }
    let guarded = chain("guarded", Hook::Prerouting, FIRST);
    batch.chain(&guarded);
    batch.rule(&guarded, Rule::new().not_having(Field::Iifname, TAP_PREFIX.as_bytes()).then(Outcome::Accept));
    let foreign = Rule::new().not_among(&[Field::Iifname, Field::EtherSaddr], MACS.name);
    batch.rule(&guarded, foreign.then(Outcome::Drop));
    let spoken = [Field::Iifname, Field::EtherSaddr, Field::IpSaddr];
    batch.rule(&guarded, Rule::new().having(Field::Protocol, &IPV4).among(&spoken, GUESTS.name).then(Outcome::Accept));
    let asked = [Field::Iifname, Field::ArpSenderMac, Field::ArpSenderIp];
    let arp = Rule::new().having(Field::EtherType, &ARP).having(Field::ArpKinds, &ARP_KINDS).among(&asked, GUESTS.name);
    batch.rule(&guarded, arp.then(Outcome::Accept));
    batch.rule(&guarded, Rule::new().then(Outcome::Drop));

    let bridged = chain("bridged", Hook::Forward, FILTER);
    batch.chain(&bridged);
    for side in [Field::Iifname, Field::Oifname] {
        batch.rule(&bridged, Rule::new().among(&[side], ISOLATED.name).then(Outcome::Drop));
    }
}

fn chain(name: &'static str, hook: Hook, priority: i32) -> Chain<'static> {
    Chain { table: GUARD, name, kind: "filter", hook, priority, accepts: true }
}

/// Lets guests through beside those that are already; a repeat is fine.
pub(super) fn admit(socket: &mut Socket, guests: &[Guarded]) -> Result<(), NetError> {
    for some in guests.chunks(GUESTS_AT_ONCE) {
        let mut batch = Batch::new();
        for guest in some {
            guest.admit(&mut batch)?;
        }
        batch.commit(socket)?;
    }
    Ok(())
}

/// Lets it through no more; its absence is fine. Its tap stays taken.
pub(super) fn expel(socket: &mut Socket, guest: &Guarded) -> Result<(), NetError> {
    let mut batch = Batch::new();
    for (set, element) in guest.leave()? {
        batch.remove(&set, &[element]);
    }
    for (set, element, has) in guest.reach() {
        if has {
            batch.remove(&set, &[element]);
        }
    }
    batch.commit(socket)
}

/// Says of a tap that is gone that it is nobody's.
pub(super) fn forget(socket: &mut Socket, tap: &str) -> Result<(), NetError> {
    let mut batch = Batch::new();
    batch.remove(&TAKEN, &[Element::new().interface(tap)]);
    batch.commit(socket)
}

/// Takes out all that names a tap that is gone, whosever it was. Its VM's address stays with what it may reach until the next VM
/// with it comes, as that may have come already.
pub(super) fn purge(socket: &mut Socket, tap: &str) -> Result<(), NetError> {
    let mut batch = Batch::new();
    for set in [MACS, GUESTS, ISOLATED, TAKEN] {
        let elements = socket.elements(&set)?.into_iter();
        let named: Vec<_> = elements.filter(|element| element.first_interface() == tap).collect();
        if !named.is_empty() {
            batch.remove(&set, &named);
        }
    }
    batch.commit(socket)
}

/// The taps that are or were a VM's, and whose.
pub(super) fn taken(socket: &mut Socket) -> Result<HashMap<String, Option<VmId>>, NetError> {
    let elements = socket.elements(&TAKEN)?;
    let owner = |element: &Element| element.note().and_then(|note| note.parse().ok());
    Ok(elements.into_iter().map(|element| (element.first_interface(), owner(&element))).collect())
}

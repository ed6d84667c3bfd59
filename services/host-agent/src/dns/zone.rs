//! The zone: what this host knows of the lab's names, and until when it may say so.
//!
//! Every entry bears the moment at which the question was asked whose answer it is. It may be told for
//! [`Times::trust`] from then on, to be kept by the asker for [`Times::ttl`]; the sum of both is three quarters of the time for
//! which a freed address rests. So before an address can be another VM's, everybody who was told of it has
//! forgotten it, whether or not this host ever learnt that it was freed. The last quarter is for what is
//! not counted: the moment between a release's clock and its commit, and an answer's way.
//!
//! Nothing here waits or looks at a clock.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::Ipv4Addr,
    ops::Bound,
    time::Duration,
};

use contract::{
    VmId, VmName,
    dns::{NamedVm, Names},
};
use ipnet::Ipv4Net;

/// How long it is known that there is nothing: bounds what misses cost, and how late a name asked for too early is found.
pub const ABSENT: Duration = Duration::from_secs(1);
/// How long askers may keep an answer at the most: a renamed or deleted VM's is soon forgotten.
pub const TTL_MAX: Duration = Duration::from_secs(5);
/// How many absent names and addresses are remembered; more cost questions, not memory.
const ABSENT_MAX: usize = 4096;

/// A moment: time since the machine was booted, with the time it was suspended, when leases ran on elsewhere.
pub type Moment = Duration;

/// The present moment.
pub fn now() -> Moment {
    // The clock is there since Linux 2.6.39; on an error everything counts as old, and is asked again.
    let read = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    read.map_or(Moment::MAX, Duration::from)
}

/// How long answers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// From the question on, for how long an entry may be told.
    pub trust: Duration,
    /// For how long an asker may keep it; whole seconds.
    pub ttl: Duration,
}

impl Times {
    /// Those that are sound where a freed address rests that long.
    pub fn of(rest: Duration) -> Self {
        let ttl = Duration::from_secs((rest / 4).as_secs()).min(TTL_MAX);
        Self { trust: (rest - rest / 4).saturating_sub(ttl), ttl }
    }
}

/// What a name server is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// The VM of that id.
    Vm(VmId),
    /// The VM of that name.
    Name(VmName),
    /// The VM of that address.
    Address(Ipv4Addr),
}

/// What is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// That VM.
    Here(NamedVm),
    /// There is none, or was none a moment ago.
    Absent,
    /// Not enough: it has to be asked for.
    Unsure,
}

#[derive(Clone, Debug)]
struct Entry {
    vm: NamedVm,
    asked: Moment,
}

/// What this host knows of the lab's names.
#[derive(Debug, Default)]
pub struct Zone {
    /// The lab's domain, in lower case and without a dot at its end.
    domain: String,
    /// Whether vm-lifecycle has told anything yet.
    told: bool,
    networks: Vec<Ipv4Net>,
    rest: Duration,
    entries: BTreeMap<VmId, Entry>,
    names: HashMap<VmName, VmId>,
    addresses: HashMap<Ipv4Addr, VmId>,
    absent: HashMap<Key, Moment>,
}

impl Zone {
    /// A zone of that domain and network with nothing in it yet.
    pub fn new(domain: &str, network: Ipv4Net) -> Self {
        Self { domain: domain.to_owned(), networks: vec![network], ..Self::default() }
    }

    /// The lab's domain.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Whether the lab's networks are known already.
    pub fn is_told(&self) -> bool {
        self.told
    }

    /// All networks of the lab.
    pub fn networks(&self) -> &[Ipv4Net] {
        &self.networks
    }

    /// How long answers hold now.
    pub fn times(&self) -> Times {
        Times::of(self.rest)
    }

    /// How many VMs are known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// What is known of it at that moment.
    pub fn find(&self, key: &Key, now: Moment) -> Known {
        if let Some(entry) = self.entry(key) {
            let age = now.saturating_sub(entry.asked);
            return if age < self.times().trust { Known::Here(entry.vm.clone()) } else { Known::Unsure };
        }
        match self.absent.get(key) {
            Some(asked) if now.saturating_sub(*asked) < ABSENT => Known::Absent,
            _ => Known::Unsure,
        }
    }

    fn entry(&self, key: &Key) -> Option<&Entry> {
        let id = match key {
            Key::Vm(id) => id,
            Key::Name(name) => self.names.get(name)?,
            Key::Address(address) => self.addresses.get(address)?,
        };
        self.entries.get(id)
    }

    /// Takes in a page of all names after that id, asked for at that moment. Replies are taken in in the order in which they
    /// were asked for, and one is asked for after the other: each is newer than all before it.
    pub fn page(&mut self, after: Option<VmId>, reply: &Names, asked: Moment) {
        self.settings(reply);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let to = match reply.vms.last().filter(|_| reply.more) {
            Some(last) => Bound::Included(last.id),
            None => Bound::Unbounded,
        };
        let told: HashSet<VmId> = reply.vms.iter().map(|vm| vm.id).collect();
        let gone = self.entries.range((from, to)).map(|(id, _)| *id).filter(|id| !told.contains(id));
        for id in gone.collect::<Vec<_>>() {
            self.remove(id);
        }
        for vm in &reply.vms {
            self.insert(vm, asked);
        }
    }

    /// Takes in what was asked for at that moment; in the order of [`Zone::page`].
    pub fn resolved<'a>(&mut self, keys: impl IntoIterator<Item = &'a Key>, reply: &Names, asked: Moment) {
        self.settings(reply);
        // Whoever had a key that was asked for has it no more, unless the reply says so.
        for key in keys {
            if let Some(entry) = self.entry(key) {
                let id = entry.vm.id;
                self.remove(id);
            }
            // Nobody asks for an id but the feed, which is told of each change.
            if !matches!(key, Key::Vm(_)) {
                self.note_absent(key.clone(), asked);
            }
        }
        for vm in &reply.vms {
            self.insert(vm, asked);
        }
    }

    fn settings(&mut self, reply: &Names) {
        self.told = true;
        self.domain.clone_from(&reply.domain);
        self.networks.clone_from(&reply.networks);
        self.rest = Duration::from_millis(reply.rest_ms);
    }

    fn insert(&mut self, vm: &NamedVm, asked: Moment) {
        self.remove(vm.id);
        // Names and addresses are unique: whoever had one of these before has been renamed or is gone.
        let before = [self.names.get(&vm.name).copied(), self.addresses.get(&vm.address).copied()];
        for id in before.into_iter().flatten() {
            self.remove(id);
        }
        for key in [Key::Vm(vm.id), Key::Name(vm.name.clone()), Key::Address(vm.address)] {
            self.absent.remove(&key);
        }
        self.names.insert(vm.name.clone(), vm.id);
        self.addresses.insert(vm.address, vm.id);
        self.entries.insert(vm.id, Entry { vm: vm.clone(), asked });
    }

    fn remove(&mut self, id: VmId) {
        if let Some(entry) = self.entries.remove(&id) {
            self.names.remove(&entry.vm.name);
            self.addresses.remove(&entry.vm.address);
        }
    }

    fn note_absent(&mut self, key: Key, asked: Moment) {
        if self.absent.len() >= ABSENT_MAX {
            self.absent.retain(|_, noted| asked.saturating_sub(*noted) < ABSENT);
        }
        if self.absent.len() < ABSENT_MAX {
            self.absent.insert(key, asked);
        }
    }
}

#[cfg(test)]
#[path = "zone_model.rs"]
mod model;

//! The pool: which taps of the lab there are and whose each is. A VM is given a ready one; what is to be done about taps (ready
//! ones made, condemned ones removed) is done in the background.
//!
//! ```text
//!            made            taken by a VM       the VM goes          removed
//!   Making ────────► Ready ───────────────► Given ──────────► Condemned ──────► (gone)
//!                      │                      ▲                   ▲
//!                      └── more than the pool holds ──────────────┘
//!                                             └ a VM's, found by a new agent
//! ```
//!
//! A tap a VM had never comes back: whoever had it open may have left filters, an owner or offloads on it, and its counters tell
//! what that VM did. Making another costs a hundredth of removing one.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::TAP_PREFIX;

/// What taps' names begin with; eight random digits follow, as a name never comes back. An older agent's taps are `wt` and the
/// last eight digits of their VM's id, so neither is taken for the other.
const PREFIX: &str = "wtp";
/// The most taps a pool may hold: a Linux bridge has 1023 ports, and they are for VMs.
pub const LARGEST: u16 = 256;

/// Whose a tap is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Making,
    Ready,
    /// A VM's, and whether it still is as the pool made it.
    Given(Fresh),
    Condemned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fresh {
    Yes,
    No,
}

/// What is to be done in the background.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Chore {
    /// Make this ready.
    Make(String),
    /// Remove this.
    Remove(String),
}

/// The taps.
#[derive(Debug)]
pub(super) struct Pool {
    size: usize,
    /// Held for looking and noting only.
    taps: Mutex<Taps>,
}

#[derive(Debug, Default)]
struct Taps {
    states: HashMap<String, State>,
    /// Whether the lab is there, so that taps can be.
    open: bool,
    /// Why the last ready tap could not be made.
    trouble: Option<String>,
}

/// What `doctor` says of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolState {
    /// How many taps it is to hold.
    pub size: usize,
    /// How many are ready.
    pub ready: usize,
    /// Why the last could not be made.
    pub trouble: Option<String>,
}

impl Taps {
    fn count(&self, state: State) -> usize {
        self.states.values().filter(|known| **known == state).count()
    }

    /// A name no tap has.
    fn mint(&self) -> String {
        loop {
            let name = format!("{PREFIX}{:08x}", rand::random::<u32>());
            if !self.states.contains_key(&name) {
                return name;
            }
        }
    }

    fn first(&self, state: State) -> Option<String> {
        self.states.iter().find(|(_, known)| **known == state).map(|(name, _)| name.clone())
    }
}

impl Pool {
    /// Holds that many, once it is opened.
    pub(super) fn new(size: u16) -> Self {
        Self { size: usize::from(size.min(LARGEST)), taps: Mutex::default() }
    }

    fn taps(&self) -> MutexGuard<'_, Taps> {
        self.taps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tap for a VM: a ready one, or else a name for one that is still to be made.
    pub(super) fn take(&self) -> String {
        let mut taps = self.taps();
        let (name, fresh) = match taps.first(State::Ready) {
            Some(ready) => (ready, Fresh::Yes),
            None => (taps.mint(), Fresh::No),
        };
        taps.states.insert(name.clone(), State::Given(fresh));
        name
    }

    /// Notes that a tap is a VM's.
    pub(super) fn claim(&self, name: &str) {
        self.taps().states.entry(name.to_owned()).or_insert(State::Given(Fresh::No));
    }

    /// Whether the tap is as the pool made it; that is said once.
    pub(super) fn fresh(&self, name: &str) -> bool {
        self.taps().states.insert(name.to_owned(), State::Given(Fresh::No)) == Some(State::Given(Fresh::Yes))
    }

    /// Notes that a tap is to be removed.
    pub(super) fn condemn(&self, name: &str) {
        self.taps().states.insert(name.to_owned(), State::Condemned);
    }

    /// Notes what was found when the lab was made: those that were never a VM's are the pool's. Returns these.
    pub(super) fn open(&self, found: &[String], taken: &HashSet<String>) -> Vec<String> {
        let mut taps = self.taps();
        taps.open = true;
        taps.states.retain(|name, state| *state != State::Ready || found.contains(name));
        for name in found.iter().filter(|name| name.starts_with(PREFIX) && !taken.contains(*name)) {
            let room = taps.count(State::Ready) < self.size;
            taps.states.entry(name.clone()).or_insert(if room { State::Ready } else { State::Condemned });
        }
        taps.states.iter().filter(|(_, state)| **state == State::Ready).map(|(name, _)| name.clone()).collect()
    }

    /// Notes that the lab is gone with all taps in it.
    pub(super) fn close(&self) {
        *self.taps() = Taps::default();
    }

    /// The next thing to be done; ready taps first, as somebody may wait for one.
    pub(super) fn next(&self) -> Option<Chore> {
        let mut taps = self.taps();
        if !taps.open {
            return None;
        }
        if taps.count(State::Ready) + taps.count(State::Making) < self.size && taps.trouble.is_none() {
            let name = taps.mint();
            taps.states.insert(name.clone(), State::Making);
            return Some(Chore::Make(name));
        }
        taps.first(State::Condemned).map(Chore::Remove)
    }

    /// Notes that a tap was made, or why not.
    pub(super) fn made(&self, name: &str, outcome: Result<(), String>) {
        let mut taps = self.taps();
        match outcome {
            Ok(()) => drop(taps.states.insert(name.to_owned(), State::Ready)),
            Err(why) => {
                // What there is of it has to go.
                taps.states.insert(name.to_owned(), State::Condemned);
                taps.trouble = Some(why);
            }
        }
    }

    /// Notes that a tap is gone, or that it cannot be removed: then it is nobody's, and found as that.
    pub(super) fn removed(&self, name: &str) {
        self.taps().states.remove(name);
    }

    /// Lets the pool try again what failed.
    pub(super) fn forgive(&self) {
        self.taps().trouble = None;
    }

    /// Whether somebody of this host has the tap, or it is the pool's.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.taps().states.contains_key(name)
    }

    /// How it stands.
    pub(super) fn state(&self) -> PoolState {
        let taps = self.taps();
        PoolState { size: self.size, ready: taps.count(State::Ready), trouble: taps.trouble.clone() }
    }
}

/// The name an older agent gave a VM's tap.
pub(super) fn older_name(vm: contract::VmId) -> String {
    format!("{TAP_PREFIX}{}", vm.tail())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(size: u16, found: &[&str], taken: &[&str]) -> (Pool, Vec<String>) {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let pool = Pool::new(size);
        pool.claim("wtp00000001");
        let mut ready = pool.open(&owned(found), &owned(taken).into_iter().collect());
        ready.sort();
        (pool, ready)
    }

    #[test]
    fn what_an_earlier_agent_left_is_the_pools_unless_it_is_or_was_a_vms() {
        let found = ["wtp00000001", "wtp00000002", "wtp00000003", "wtp00000004", "wt0badcafe"];
        let (pool, ready) = opened(2, &found, &["wtp00000003"]);
        assert_eq!(ready, ["wtp00000002", "wtp00000004"]);
        assert!(pool.knows("wtp00000001"), "a VM's handles name it");
        assert!(!pool.knows("wtp00000003"), "it was a VM's that is not here");
        assert!(!pool.knows("wt0badcafe"), "it is no pool's");
        assert_eq!(pool.next(), None, "it is full");

        let (pool, ready) = opened(0, &found, &["wtp00000003"]);
        assert_eq!(ready, [""; 0], "the pool is off");
        assert!(matches!(pool.next(), Some(Chore::Remove(name)) if name == "wtp00000002" || name == "wtp00000004"));
    }

    #[test]
    fn taps_are_taken_once_refilled_and_never_come_back() {
        let (pool, _) = opened(1, &[], &[]);
        let Some(Chore::Make(name)) = pool.next() else { panic!("the pool is empty") };
        assert!(pool.knows(&name), "while it is made");
        assert_eq!(pool.next(), None);
        let other = pool.take();
        assert!(other != name && !pool.fresh(&other), "none is ready yet: one that is still to be made");
        pool.made(&name, Ok(()));
        assert_eq!(pool.take(), name);
        assert!(pool.fresh(&name) && !pool.fresh(&name));
        assert!(matches!(pool.next(), Some(Chore::Make(other)) if other != name));
        pool.condemn(&name);
        assert_eq!(pool.next(), Some(Chore::Remove(name.clone())));
        pool.removed(&name);
        assert!(!pool.knows(&name));
    }

    #[test]
    fn a_pool_that_cannot_be_filled_waits_until_it_is_forgiven_and_one_without_a_lab_does_nothing() {
        let pool = Pool::new(4);
        assert_eq!(pool.next(), None, "there is no lab yet");
        pool.open(&[], &HashSet::new());
        let Some(Chore::Make(name)) = pool.next() else { panic!("the pool is empty") };
        pool.made(&name, Err("no room".to_owned()));
        assert_eq!(pool.next(), Some(Chore::Remove(name.clone())), "what there is of it");
        pool.removed(&name);
        assert_eq!((pool.next(), pool.state().trouble.as_deref()), (None, Some("no room")));
        pool.forgive();
        assert!(matches!(pool.next(), Some(Chore::Make(_))));
        pool.close();
        assert_eq!(pool.next(), None);
    }
}

//! Finds a name in its directory: a table of four bytes a place, since an image may have millions of names.

use std::hash::{BuildHasher, RandomState};

use crate::image::limits::{ENTRIES_MAX, ENTRIES_SPARE};

/// A place that was never used.
const EMPTY: u32 = 0;
/// A place whose entry went.
const GONE: u32 = u32::MAX;
/// Of a place, the bits that say which entry it is; the rest are of its hash.
const ENTRY: u32 = (1 << 24) - 1;
const _: () = assert!(ENTRIES_MAX + ENTRIES_SPARE == ENTRY as u64 - 2);

/// The table. Entries are numbers; whoever has them tells whether one is the name that is looked for.
pub(super) struct Index {
    places: Vec<u32>,
    /// Places that are not empty.
    used: usize,
    /// Keyed anew each time, so that nobody can choose names that meet.
    hasher: RandomState,
}

impl Index {
    pub(super) fn new() -> Self {
        Self { places: vec![EMPTY; 1024], used: 0, hasher: RandomState::new() }
    }

    pub(super) fn hash(&self, directory: u32, name: &[u8]) -> u64 {
        self.hasher.hash_one((directory, name))
    }

    /// Where a hash's places begin, and the bits of it that stand in them.
    fn start(&self, hash: u64) -> (usize, u32) {
        let start = (u128::from(hash) * self.places.len() as u128) >> 64;
        (start as usize, (hash as u32) << 24)
    }

    /// The entry of that hash for which `is` says so.
    pub(super) fn find<E>(&self, hash: u64, mut is: impl FnMut(u32) -> Result<bool, E>) -> Result<Option<u32>, E> {
        let (mut at, tag) = self.start(hash);
        loop {
            match self.places[at] {
                EMPTY => return Ok(None),
                GONE => {}
                place if place & !ENTRY == tag => {
                    let entry = (place & ENTRY) - 1;
                    if is(entry)? {
                        return Ok(Some(entry));
                    }
                }
                _ => {}
            }
            at = (at + 1) % self.places.len();
        }
    }

    /// Adds an entry that is not there.
    pub(super) fn insert(&mut self, hash: u64, entry: u32) {
        let (mut at, tag) = self.start(hash);
        while self.places[at] != EMPTY && self.places[at] != GONE {
            at = (at + 1) % self.places.len();
        }
        self.used += usize::from(self.places[at] == EMPTY);
        self.places[at] = tag | (entry + 1);
    }

    /// Takes an entry away.
    pub(super) fn remove(&mut self, hash: u64, entry: u32) {
        let (mut at, tag) = self.start(hash);
        while self.places[at] != EMPTY {
            if self.places[at] == tag | (entry + 1) {
                self.places[at] = GONE;
                return;
            }
            at = (at + 1) % self.places.len();
        }
    }

    /// Whether it must be made anew before the next entry.
    pub(super) fn is_full(&self) -> bool {
        self.used * 5 >= self.places.len() * 4
    }

    /// Empties it, with room for so many entries and half as many more; they are to be added again.
    pub(super) fn clear(&mut self, entries: usize) {
        // First the old table goes, so that there are never two.
        self.places = Vec::new();
        self.places = vec![EMPTY; (entries * 2).max(1024)];
        self.used = 0;
    }

    /// Gives the memory back; nothing is found any more.
    pub(super) fn forget(&mut self) {
        self.places = vec![EMPTY; 1];
    }
}

//! A **transfer**: one import or export under way, seen from outside of the thread that does it.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// `comparing`, `receiving`, `placing`, `scanning` or `sending`; empty before it began.
    pub phase: &'static str,
    /// Bytes of content moved so far.
    pub done: u64,
    /// Bytes to move; 0 while not known.
    pub total: u64,
}

/// What a transfer shares with those who ask for it.
#[derive(Debug, Default)]
pub struct Transfer {
    phase: Mutex<(&'static str, u64)>,
    done: AtomicU64,
    aborted: AtomicBool,
}

impl Transfer {
    fn lock(&self) -> MutexGuard<'_, (&'static str, u64)> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let (phase, total) = *self.lock();
        Progress { phase, done: self.done.load(Ordering::Relaxed), total }
    }

    /// Asks it to end; it does at its next step, and what was not placed is removed. Once it is placed, it ends as if nothing had
    /// been asked.
    pub fn abort(&self) {
        self.aborted.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to end.
    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Relaxed)
    }

    /// Begins a phase of so many bytes.
    pub fn begin(&self, phase: &'static str, total: u64) {
        *self.lock() = (phase, total);
        self.done.store(0, Ordering::Relaxed);
    }

    /// Moved so many bytes more.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
}

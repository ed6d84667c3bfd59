//! How far a staging is, for everybody who asks.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use contract::operation::Progress;

/// Reports progress; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Reporter {
    phase: Arc<Mutex<(&'static str, u64)>>,
    done: Arc<AtomicU64>,
}

impl Reporter {
    /// A new phase with so many bytes in all (0: not known).
    pub(super) fn phase(&self, name: &'static str, total: u64) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = (name, total);
        self.done.store(0, Ordering::Relaxed);
    }

    pub(super) fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A part failed and begins again.
    pub(super) fn take_back(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn now(&self) -> (String, Progress) {
        let (name, total) = *self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        (name.to_owned(), Progress { done: self.done.load(Ordering::Relaxed), total })
    }
}

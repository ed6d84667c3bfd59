//! How far a staging is, for everybody who asks.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use contract::operation::Progress;

use super::download::Transfer;

/// Reports progress; clones share it.
#[derive(Clone, Default)]
pub(super) struct Reporter {
    phase: Arc<Mutex<(&'static str, u64)>>,
    done: Arc<AtomicU64>,
    transfer: Arc<Mutex<Transfer>>,
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

    /// What is downloaded meanwhile: until it is here, that is what everything waits for and the phase that is told.
    pub(super) fn downloading(&self, transfer: Transfer) {
        *self.transfer.lock().unwrap_or_else(PoisonError::into_inner) = transfer;
    }

    pub(super) fn now(&self) -> (String, Progress) {
        let transfer = self.transfer.lock().unwrap_or_else(PoisonError::into_inner).progress();
        if let Some(progress) = transfer {
            return ("downloading".to_owned(), progress);
        }
        let (name, total) = *self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        (name.to_owned(), Progress { done: self.done.load(Ordering::Relaxed), total })
    }
}

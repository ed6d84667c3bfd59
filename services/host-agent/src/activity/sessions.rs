//! **Sessions**: ways into VMs that are open now, and when one was opened or closed last.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use contract::VmId;

use crate::vm::now_ms;

/// The open sessions of all VMs. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<Mutex<HashMap<VmId, Count>>>);

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    open: usize,
    touched_ms: u64,
}

/// An open session; dropping it closes it.
#[derive(Debug)]
pub struct Session {
    sessions: Sessions,
    vm: VmId,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens one into that VM.
    pub fn open(&self, vm: VmId) -> Session {
        let mut all = self.lock();
        let count = all.entry(vm).or_default();
        (count.open, count.touched_ms) = (count.open + 1, now_ms());
        Session { sessions: self.clone(), vm }
    }

    /// When the VM was used by a session last, Unix time in milliseconds: now while one is open, 0 when none ever was.
    pub fn used_at(&self, vm: VmId, now_ms: u64) -> u64 {
        match self.lock().get(&vm) {
            Some(count) if count.open > 0 => now_ms,
            Some(count) => count.touched_ms,
            None => 0,
        }
    }

    /// Forgets VMs without open sessions that are not here any more.
    pub fn retain(&self, here: impl Fn(VmId) -> bool) {
        self.lock().retain(|vm, count| count.open > 0 || here(*vm));
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(count) = self.sessions.lock().get_mut(&self.vm) {
            (count.open, count.touched_ms) = (count.open.saturating_sub(1), now_ms());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_used_while_a_session_is_open_and_was_when_it_closed() {
        let (sessions, vm, later) = (Sessions::default(), VmId::new(), now_ms() + 1_000_000);
        assert_eq!(sessions.used_at(vm, later), 0);
        let (one, two) = (sessions.open(vm), sessions.open(vm));
        drop(one);
        sessions.retain(|_| false);
        assert_eq!(sessions.used_at(vm, later), later);
        drop(two);
        assert!((1..later).contains(&sessions.used_at(vm, later)));
        sessions.retain(|_| false);
        assert_eq!(sessions.used_at(vm, later), 0);
    }
}

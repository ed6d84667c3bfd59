//! A **stop**: how git that works for somebody is ended when nobody waits for it any more, with all it has started.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::error::WorktreeError;

/// Ends what runs under it, and lets nothing begin any more. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    /// Process groups whose leaders were not waited for yet, so that their numbers are nobody else's.
    groups: BTreeSet<Pid>,
}

/// Stops when it goes out of scope: also where a future that waits for git is dropped.
#[derive(Debug)]
pub struct StopOnDrop(Stop);

impl Stop {
    /// Ends it.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        state.groups.iter().for_each(|group| kill(*group));
    }

    /// Stops when what this gives goes out of scope.
    pub fn on_drop(&self) -> StopOnDrop {
        StopOnDrop(self.clone())
    }

    /// Goes on only where nobody stopped it.
    ///
    /// # Errors
    /// [`WorktreeError::Stopped`].
    pub fn check(&self) -> Result<(), WorktreeError> {
        if self.lock().stopped { Err(WorktreeError::Stopped) } else { Ok(()) }
    }

    /// A group has begun, which is ended at once where it comes too late.
    pub(crate) fn begun(&self, group: Pid) {
        let mut state = self.lock();
        state.groups.insert(group);
        if state.stopped {
            kill(group);
        }
    }

    /// A group's leader has ended, and is waited for next.
    pub(crate) fn ended(&self, group: Pid) {
        self.lock().groups.remove(&group);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

fn kill(group: Pid) {
    match killpg(group, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::warn!(%group, %error, "git cannot be ended"),
    }
}

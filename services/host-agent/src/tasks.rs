//! **Tasks** that a command begins, its repeats join, and a discard ends: one an operation, whoever asks, in whatever order the commands come.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use contract::{ApiError, OperationId, agent::Fence};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// What a task works with: how it tells how far it is, and how it is told to end.
#[derive(Clone, Debug, Default)]
pub struct Reins {
    done: Arc<AtomicU64>,
    /// Cancelled when the task is to end; it ends soon, and only then its files are removed.
    pub cancel: CancellationToken,
}

impl Reins {
    /// Of what ends when that is cancelled.
    pub fn of(cancel: CancellationToken) -> Self {
        Self { cancel, ..Self::default() }
    }

    /// So many bytes more are done.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// How many bytes are done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

type Outcome<T> = Option<Result<T, ApiError>>;

/// One task, as those see it who wait for it.
pub struct Task<T> {
    epoch: i64,
    reins: Reins,
    outcome: watch::Receiver<Outcome<T>>,
}

impl<T: Clone> Clone for Task<T> {
    fn clone(&self) -> Self {
        Self { epoch: self.epoch, reins: self.reins.clone(), outcome: self.outcome.clone() }
    }
}

impl<T: Clone> Task<T> {
    /// Waits a while for its end; how it ended, or how many bytes are done.
    pub async fn wait(mut self, at_most: Duration) -> Result<Result<T, ApiError>, u64> {
        drop(tokio::time::timeout(at_most, self.outcome.wait_for(Option::is_some)).await);
        let outcome = self.outcome.borrow().clone();
        outcome.ok_or_else(|| self.reins.done())
    }
}

/// The tasks of one sort that are under way, and those that ended and were not forgotten yet.
pub struct Tasks<T> {
    /// Held for map operations only, never across I/O.
    all: Mutex<HashMap<OperationId, Task<T>>>,
    /// The highest epoch of a discard: a late command does not begin the task again.
    discarded: Mutex<HashMap<OperationId, i64>>,
}

impl<T> Default for Tasks<T> {
    fn default() -> Self {
        Self { all: Mutex::default(), discarded: Mutex::default() }
    }
}

fn stale(fence: Fence, seen: i64) -> ApiError {
    ApiError::aborted(format!("stale epoch {} for {}: {seen} was seen already", fence.epoch, fence.operation))
}

impl<T: Clone + Send + Sync + 'static> Tasks<T> {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<OperationId, Task<T>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn discarded(&self) -> std::sync::MutexGuard<'_, HashMap<OperationId, i64>> {
        self.discarded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The operation's task, begun unless it is there.
    ///
    /// # Errors
    /// `aborted` for a stale epoch, or one that was discarded.
    pub fn begin<F>(&self, fence: Fence, work: impl FnOnce(Reins) -> F) -> Result<Task<T>, ApiError>
    where
        F: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        let mut all = self.all();
        // With the tasks in hand: a discard notes its epoch before it looks for one.
        if let Some(seen) = self.discarded().get(&fence.operation).filter(|seen| fence.epoch <= **seen) {
            return Err(stale(fence, *seen));
        }
        if let Some(task) = all.get_mut(&fence.operation) {
            if fence.epoch < task.epoch {
                return Err(stale(fence, task.epoch));
            }
            task.epoch = fence.epoch;
            return Ok(task.clone());
        }
        let (sender, outcome) = watch::channel(None);
        let reins = Reins::default();
        let work = work(reins.clone());
        let task = Task { epoch: fence.epoch, reins, outcome };
        all.insert(fence.operation, task.clone());
        tokio::spawn(async move { drop(sender.send_replace(Some(work.await))) }.in_current_span());
        Ok(task)
    }

    /// Has the operation's task end, waits for that and forgets it; none is fine.
    ///
    /// # Errors
    /// `aborted` for a stale epoch.
    pub async fn end(&self, fence: Fence) -> Result<(), ApiError> {
        {
            let mut discarded = self.discarded();
            let seen = discarded.entry(fence.operation).or_insert(fence.epoch);
            *seen = (*seen).max(fence.epoch);
        }
        let task = self.all().get(&fence.operation).cloned();
        if let Some(mut task) = task {
            if fence.epoch < task.epoch {
                return Err(stale(fence, task.epoch));
            }
            task.reins.cancel.cancel();
            drop(task.outcome.wait_for(Option::is_some).await);
        }
        self.forget(fence.operation);
        Ok(())
    }

    /// Whether an operation's task goes on, and the highest epoch seen of it.
    pub fn activity(&self, operation: OperationId) -> (bool, i64) {
        let task = self.all().get(&operation).map(|task| (task.outcome.borrow().is_none(), task.epoch));
        let discarded = self.discarded().get(&operation).copied().unwrap_or(0);
        let (working, epoch) = task.unwrap_or_default();
        (working, epoch.max(discarded))
    }

    /// Forgets a task that ended, so that the next command begins it anew. One that a later command has begun meanwhile stays.
    pub fn forget(&self, operation: OperationId) {
        let mut all = self.all();
        // One that panicked has no outcome, and nobody who could give one.
        let ended = |task: &Task<T>| task.outcome.borrow().is_some() || task.outcome.has_changed().is_err();
        if all.get(&operation).is_some_and(ended) {
            all.remove(&operation);
        }
    }
}

#[cfg(test)]
mod tests {
    use contract::ErrorCode;

    use super::*;

    fn fence(operation: OperationId, epoch: i64) -> Fence {
        Fence { operation, epoch }
    }

    #[tokio::test]
    async fn a_task_is_joined_by_repeats_and_does_not_begin_again_once_discarded() {
        let (tasks, operation) = (Tasks::<u32>::default(), OperationId::new());
        let endless = |reins: Reins| async move {
            reins.add(7);
            reins.cancel.cancelled().await;
            Err(ApiError::cancelled("told to end"))
        };
        let task = tasks.begin(fence(operation, 2), endless).unwrap();
        assert_eq!(tasks.begin(fence(operation, 1), endless).err().unwrap().code, ErrorCode::Aborted);
        // A late answer to an earlier one's failure does not take it out of sight.
        tasks.forget(operation);
        let joined = tasks.begin(fence(operation, 3), |_| async { Ok(1) }).unwrap();
        tokio::task::yield_now().await;
        assert_eq!(joined.wait(Duration::ZERO).await.unwrap_err(), 7);
        assert_eq!(tasks.end(fence(operation, 2)).await.unwrap_err().code, ErrorCode::Aborted, "3 was seen");
        tasks.end(fence(operation, 3)).await.unwrap();
        assert_eq!(task.wait(Duration::ZERO).await.unwrap().unwrap_err().code, ErrorCode::Cancelled);
        assert_eq!(tasks.begin(fence(operation, 3), |_| async { Ok(1) }).err().unwrap().code, ErrorCode::Aborted);
        let again = tasks.begin(fence(operation, 4), |_| async { Ok(1) }).unwrap();
        assert_eq!(again.wait(Duration::from_secs(5)).await.unwrap().unwrap(), 1);
    }
}

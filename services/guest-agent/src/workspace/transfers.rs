//! **Transfers**: the one that goes on, and how the last ones ended.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use contract::{
    ApiError, OperationId,
    worktree::{TransferStatus, TransferSummary},
};
use tokio::sync::{Notify, OwnedMutexGuard, watch};
use tree::{GuestError, StateDir};

/// How many ended transfers are remembered: whoever asked for one asks for its end within minutes.
const REMEMBERED: usize = 64;
/// How long an order waits for the one before it to end, which was aborted or is finishing.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long an answer waits for what an earlier agent left to be finished, at least: shorter than the host's patience with a status.
const RECOVERY: Duration = Duration::from_secs(2);

/// The VM's workspaces. Clones are the same.
#[derive(Clone, Debug)]
pub struct Workspaces(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: StateDir,
    /// Held by what changes a workspace.
    exclusive: Arc<tokio::sync::Mutex<()>>,
    /// Lock order: after `exclusive`. Never held across an await.
    known: Mutex<Known>,
    /// Counts the ends of transfers.
    ended: watch::Sender<u64>,
    /// What an earlier agent left is finished or removed.
    recovered: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Known {
    running: Option<Running>,
    ended: VecDeque<(OperationId, TransferStatus)>,
}

#[derive(Clone, Debug)]
struct Running {
    operation: OperationId,
    epoch: i64,
    watch: Arc<tree::Transfer>,
    cut: Arc<Notify>,
}

impl Running {
    fn abort(&self) {
        self.watch.abort();
        self.cut.notify_one();
    }
}

/// One transfer, whose end is still to be told.
#[derive(Debug)]
pub struct Transfer {
    all: Workspaces,
    running: Running,
    told: bool,
    _exclusive: OwnedMutexGuard<()>,
}

impl Workspaces {
    /// Those remembered there. What an earlier agent left is finished or removed first, in a thread: orders wait for it.
    pub fn open(state: StateDir) -> Self {
        let exclusive = Arc::new(tokio::sync::Mutex::new(()));
        let held = Arc::clone(&exclusive).try_lock_owned();
        let (ended, recovered) = (watch::Sender::new(0), watch::Sender::new(held.is_err()));
        let all = Self(Arc::new(Inner { state, exclusive, known: Mutex::default(), ended, recovered }));
        if let Ok(held) = held {
            let all = all.clone();
            tokio::task::spawn_blocking(move || {
                for error in all.state().recover() {
                    tracing::warn!("a workspace: {}", error.to_api());
                }
                all.0.recovered.send_replace(true);
                drop(held);
            });
        }
        all
    }

    /// Where they are remembered.
    pub fn state(&self) -> &StateDir {
        &self.0.state
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the workspaces to itself. What an older claim began is aborted: its holder has lost it.
    ///
    /// # Errors
    /// A later claim was seen (`aborted`), or something else goes on (`busy`).
    pub async fn hold(&self, epoch: i64) -> Result<OwnedMutexGuard<()>, ApiError> {
        if let Some(running) = self.lock().running.as_ref().filter(|running| running.epoch < epoch) {
            running.abort();
        }
        let exclusive = tokio::time::timeout(PATIENCE, Arc::clone(&self.0.exclusive).lock_owned()).await;
        let busy =
            |_| ApiError::busy("another transfer of this VM's workspaces goes on").hint("wait until it has ended");
        let exclusive = exclusive.map_err(busy)?;
        let state = self.0.state.clone();
        let claimed = tokio::task::spawn_blocking(move || state.claim(epoch)).await;
        match claimed {
            Ok(claimed) => claimed.map(|()| exclusive).map_err(|error| error.to_api()),
            Err(error) => Err(ApiError::internal(format!("noting the epoch failed: {error}"))),
        }
    }

    /// Begins a transfer.
    ///
    /// # Errors
    /// As [`Self::hold`]; `already_exists` when that operation's began already.
    pub async fn begin(&self, operation: OperationId, epoch: i64) -> Result<Transfer, ApiError> {
        let twice = || ApiError::already_exists(format!("the transfer of operation {operation} began already"));
        if !matches!(self.now(operation), TransferStatus::Unknown) {
            return Err(twice());
        }
        let exclusive = self.hold(epoch).await?;
        if !matches!(self.now(operation), TransferStatus::Unknown) || self.remembered(operation).await.is_some() {
            return Err(twice());
        }
        let running = Running { operation, epoch, watch: Arc::default(), cut: Arc::default() };
        self.lock().running = Some(running.clone());
        Ok(Transfer { all: self.clone(), running, told: false, _exclusive: exclusive })
    }

    /// How an operation's transfer goes; while it goes on, the answer is held for so long.
    pub async fn status(&self, operation: OperationId, wait: Duration) -> TransferStatus {
        let (mut ends, mut recovered) = (self.0.ended.subscribe(), self.0.recovered.subscribe());
        // What an earlier agent began may be in its place in a moment.
        let recovery = recovered.wait_for(|recovered| *recovered);
        if tokio::time::timeout(wait.max(RECOVERY), recovery).await.is_err() {
            return TransferStatus::Running { phase: "placing".to_owned(), done: 0, total: 0 };
        }
        let over = async {
            while matches!(self.now(operation), TransferStatus::Running { .. }) {
                if ends.changed().await.is_err() {
                    return;
                }
            }
        };
        let _over_or_not = tokio::time::timeout(wait, over).await;
        match self.now(operation) {
            TransferStatus::Unknown => {
                let placed = self.remembered(operation).await;
                placed.map_or(TransferStatus::Unknown, |summary| TransferStatus::Done { summary })
            }
            known => known,
        }
    }

    /// What an earlier agent's transfer did, where it made the base that is there.
    async fn remembered(&self, operation: OperationId) -> Option<TransferSummary> {
        let state = self.0.state.clone();
        let placed = tokio::task::spawn_blocking(move || state.placed(operation)).await.ok()?;
        placed.unwrap_or_else(|error| {
            tracing::warn!(%error, "what is remembered of workspaces cannot be read");
            None
        })
    }

    fn now(&self, operation: OperationId) -> TransferStatus {
        let known = self.lock();
        if let Some(running) = known.running.as_ref().filter(|running| running.operation == operation) {
            let tree::Progress { phase, done, total } = running.watch.progress();
            return TransferStatus::Running { phase: phase.to_owned(), done, total };
        }
        let ended = known.ended.iter().find(|(ended, _)| *ended == operation);
        ended.map_or(TransferStatus::Unknown, |(_, status)| status.clone())
    }

    /// Ends an operation's transfer, if one goes on.
    pub fn abort(&self, operation: OperationId) {
        if let Some(running) = self.lock().running.as_ref().filter(|running| running.operation == operation) {
            running.abort();
        }
    }
}

impl Transfer {
    /// What its thread shares.
    pub fn watch(&self) -> Arc<tree::Transfer> {
        Arc::clone(&self.running.watch)
    }

    /// Returns once it is to end.
    pub async fn cut(&self) {
        self.running.cut.notified().await;
    }

    /// Tells how it ended.
    pub fn end(mut self, outcome: &Result<TransferSummary, GuestError>) {
        let status = match outcome {
            Ok(summary) => TransferStatus::Done { summary: summary.clone() },
            Err(error) => TransferStatus::Failed { error: error.to_api() },
        };
        self.tell(status);
    }

    fn tell(&mut self, status: TransferStatus) {
        let mut known = self.all.lock();
        known.running = None;
        if known.ended.len() == REMEMBERED {
            known.ended.pop_front();
        }
        known.ended.push_back((self.running.operation, status));
        drop(known);
        self.told = true;
        self.all.0.ended.send_modify(|count| *count += 1);
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if !self.told {
            self.tell(TransferStatus::Failed { error: ApiError::internal("the transfer was given up by the guest") });
        }
    }
}

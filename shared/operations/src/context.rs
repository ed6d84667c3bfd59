//! What a step knows of the operation it belongs to.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bus::Bus;
use contract::{ApiError, OperationId, agent::Fence, operation::Progress, subject};
use store::Store;
use tokio_util::sync::CancellationToken;

use crate::{claim::Claim, kind::StepError};

/// Progress is written at most this often: it is for people's eyes.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// A step's view of its operation.
#[derive(Clone, Debug)]
pub struct Context {
    pub(crate) claim: Arc<Claim>,
    pub(crate) store: Store,
    pub(crate) bus: Bus,
    pub(crate) cancel: CancellationToken,
    pub(crate) lease_lost: CancellationToken,
    pub(crate) undoing: bool,
    progress_at: Arc<Mutex<Option<Instant>>>,
}

impl Context {
    pub(crate) fn new(claim: Arc<Claim>, store: Store, bus: Bus, cancel: CancellationToken) -> Self {
        Self {
            claim,
            store,
            bus,
            cancel,
            lease_lost: CancellationToken::new(),
            undoing: false,
            progress_at: Arc::default(),
        }
    }

    /// The operation's id.
    pub fn operation(&self) -> OperationId {
        self.claim.id
    }

    /// The epoch of its claim on its resource.
    pub fn epoch(&self) -> i64 {
        self.claim.epoch
    }

    /// What every command to a host-agent carries.
    pub fn fence(&self) -> Fence {
        Fence { operation: self.claim.id, epoch: self.claim.epoch }
    }

    /// The database.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The bus.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Shows how far the step is, under a phase of the step's choice; best effort and at most five times a second.
    pub async fn progress(&self, phase: &str, progress: Progress) {
        {
            let mut at = self.progress_at.lock().unwrap_or_else(PoisonError::into_inner);
            if at.is_some_and(|at| at.elapsed() < PROGRESS_EVERY) {
                return;
            }
            *at = Some(Instant::now());
        }
        match self.claim.set_progress(&self.store, phase, progress).await {
            Ok(_) => self.bus.notify(subject::operation_changed(self.claim.id)).await,
            Err(error) => tracing::debug!(%error, "progress was not saved"),
        }
    }

    /// Whether a cancel was asked for. Never while undoing: an undo is not cancelled.
    pub fn cancel_requested(&self) -> bool {
        !self.undoing && self.cancel.is_cancelled()
    }

    /// Ends once a cancel is asked for; never while undoing.
    pub async fn cancelled(&self) {
        if self.undoing { std::future::pending().await } else { self.cancel.cancelled().await }
    }

    /// Waits for a reply, or for the operation's cancel, so that a long-poll is left at once.
    ///
    /// # Errors
    /// The cancel.
    pub async fn unless_cancelled<T>(
        &self,
        reply: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<Result<T, ApiError>, StepError> {
        tokio::select! {
            reply = reply => Ok(reply),
            () = self.cancelled() => {
                self.checkpoint()?;
                Ok(Err(ApiError::unavailable("the wait for a reply was left")))
            }
        }
    }

    /// A place where the step may end early: call it between the rounds of a long wait.
    ///
    /// # Errors
    /// A cancel was asked for, the lease is lost, or the deadline has passed; return it.
    pub fn checkpoint(&self) -> Result<(), StepError> {
        if self.lease_lost.is_cancelled() {
            return Err(StepError::lease_lost());
        }
        if self.cancel_requested() {
            return Err(StepError::cancelled());
        }
        if !self.undoing && self.past_deadline() {
            return Err(StepError::permanent(ApiError::deadline_exceeded("the operation's time ran out")));
        }
        Ok(())
    }

    pub(crate) fn past_deadline(&self) -> bool {
        time::OffsetDateTime::now_utc() >= self.claim.deadline_at
    }
}

//! **Pushes** of this host's images: begun by a command, joined by its repeats, ended by a discard.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use contract::{
    ApiError, OperationId,
    agent::{Fence, PushBundleRequest, PushStatus, PushedBundle},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{ImageStore, bundle::Pushing, progress::Reporter, read_record, stale};

type Outcome = Option<Result<PushedBundle, ApiError>>;

#[derive(Clone)]
struct Push {
    epoch: i64,
    cancel: CancellationToken,
    progress: Reporter,
    outcome: watch::Receiver<Outcome>,
}

/// The pushes under way, and those that ended and were not forgotten yet.
#[derive(Default)]
pub(super) struct Pushes {
    /// Held for map operations only, never across I/O.
    all: Mutex<HashMap<OperationId, Push>>,
}

impl Pushes {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<OperationId, Push>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one goes on, and the highest epoch seen of it; nothing when there is none.
    pub(super) fn activity(&self, operation: OperationId) -> Option<(bool, i64)> {
        self.all().get(&operation).map(|push| (push.outcome.borrow().is_none(), push.epoch))
    }

    /// Ends one and forgets it; none is fine.
    ///
    /// # Errors
    /// `aborted` for a stale epoch.
    pub(super) async fn end(&self, fence: Fence) -> Result<(), ApiError> {
        let push = self.all().get(&fence.operation).cloned();
        let Some(mut push) = push else { return Ok(()) };
        if fence.epoch < push.epoch {
            return Err(stale(fence, push.epoch));
        }
        push.cancel.cancel();
        // Its directory must not be written to any more when it is removed.
        drop(push.outcome.wait_for(Option::is_some).await);
        self.all().remove(&fence.operation);
        Ok(())
    }
}

impl ImageStore {
    /// Starts a push, or joins it, and waits a while for its end.
    ///
    /// # Errors
    /// `aborted` for a stale epoch, `not_found` for an image that is not here.
    pub async fn push(self: &Arc<Self>, request: &PushBundleRequest) -> Result<PushStatus, ApiError> {
        let mut push = self.pushing(request)?;
        let ended = push.outcome.wait_for(Option::is_some);
        drop(tokio::time::timeout(Duration::from_millis(request.wait_ms), ended).await);
        let outcome = push.outcome.borrow().clone();
        Ok(match outcome {
            None => {
                let (phase, progress) = push.progress.now();
                PushStatus::Running { phase, progress }
            }
            Some(Ok(pushed)) => PushStatus::Done { pushed },
            Some(Err(error)) => PushStatus::Failed { error },
        })
    }

    fn pushing(self: &Arc<Self>, request: &PushBundleRequest) -> Result<Push, ApiError> {
        let fence = request.fence;
        if let Some(seen) = self.discarded().get(&fence.operation).filter(|seen| fence.epoch <= **seen) {
            return Err(stale(fence, *seen));
        }
        let rootfs = self.rootfs(request.image)?;
        let record = read_record(&self.published(request.image))
            .ok_or_else(|| ApiError::internal(format!("the record of the image {} cannot be read", request.image)))?;
        let mut all = self.pushes.all();
        if let Some(push) = all.get_mut(&fence.operation) {
            if fence.epoch < push.epoch {
                return Err(stale(fence, push.epoch));
            }
            push.epoch = fence.epoch;
            return Ok(push.clone());
        }
        let (sender, outcome) = watch::channel(None);
        let (cancel, progress) = (CancellationToken::new(), Reporter::default());
        progress.phase("packing", 0);
        let pushing = Pushing {
            rootfs,
            image: record.image,
            dir: self.staging(fence.operation),
            reference: request.reference.clone(),
            options: self.options.clone(),
            progress: progress.clone(),
            cancel: cancel.clone(),
        };
        let push = Push { epoch: fence.epoch, cancel, progress, outcome };
        all.insert(fence.operation, push.clone());
        tokio::spawn(async move { drop(sender.send_replace(Some(pushing.run().await))) }.in_current_span());
        Ok(push)
    }
}

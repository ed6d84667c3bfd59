//! **Pushes** of this host's images, to a registry or as an archive: begun by a command, joined by its repeats, ended by a discard.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use contract::{
    ApiError, ImageId, OperationId,
    agent::{ExportBundleRequest, Fence, PushBundleRequest, PushStatus, PushedBundle, StagedImage, VmKernel},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    ImageOptions, ImageStore,
    bundle::{Exporting, Pushing, Taken},
    progress::Reporter,
    read_record,
    registry::Known,
    stale,
};

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
    /// Where registries have blobs that were sent there.
    known: Known,
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
    /// `aborted` for a stale epoch, `not_found` for an image that is not here, `failed_precondition` for such a kernel.
    pub async fn push(self: &Arc<Self>, request: &PushBundleRequest) -> Result<PushStatus, ApiError> {
        let push = self.sending(request.fence, request.image, request.kernel.as_ref(), |given| {
            let Given { rootfs, image, kernel, dir, options, progress, cancel } = given;
            let (reference, known) = (request.reference.clone(), self.pushes.known.clone());
            let pushing = Pushing { rootfs, image, kernel, dir, reference, known, options, progress, cancel };
            async move { pushing.run().await }
        });
        let push = push.await?;
        Ok(told(push, request.wait_ms).await)
    }

    /// Starts an export, or joins it, and waits a while for its end.
    ///
    /// # Errors
    /// As [`ImageStore::push`]; `unavailable` before the host serves byte streams.
    pub async fn export(self: &Arc<Self>, request: &ExportBundleRequest) -> Result<PushStatus, ApiError> {
        let bus = self.sources().bus;
        let bus = bus.ok_or_else(|| ApiError::unavailable("the host does not serve byte streams yet"))?;
        let push = self.sending(request.fence, request.image, request.kernel.as_ref(), |given| {
            let Given { rootfs, image, kernel, dir, options, progress, cancel } = given;
            let (name, session) = (request.name.clone(), request.session);
            let exporting = Exporting { rootfs, image, kernel, name, dir, bus, session, options, progress, cancel };
            async move { exporting.run().await }
        });
        let push = push.await?;
        Ok(told(push, request.wait_ms).await)
    }

    async fn sending<F: Future<Output = Result<PushedBundle, ApiError>> + Send + 'static>(
        self: &Arc<Self>,
        fence: Fence,
        image: ImageId,
        kernel: Option<&VmKernel>,
        begin: impl FnOnce(Given) -> F,
    ) -> Result<Push, ApiError> {
        let (store, kernel) = (self.clone(), kernel.cloned());
        let read = tokio::task::spawn_blocking(move || store.to_send(image, kernel)).await;
        let (rootfs, image, kernel) =
            read.map_err(|error| ApiError::internal(format!("the image was not read: {error}")))??;
        let mut all = self.pushes.all();
        // With the pushes in hand: a discard notes its epoch before it looks for one.
        if let Some(seen) = self.discarded().get(&fence.operation).filter(|seen| fence.epoch <= **seen) {
            return Err(stale(fence, *seen));
        }
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
        let push = Push { epoch: fence.epoch, cancel: cancel.clone(), progress: progress.clone(), outcome };
        let dir = self.staging(fence.operation);
        let work = begin(Given { rootfs, image, kernel, dir, options: self.options.clone(), progress, cancel });
        all.insert(fence.operation, push.clone());
        tokio::spawn(async move { drop(sender.send_replace(Some(work.await))) }.in_current_span());
        Ok(push)
    }

    /// An image's root filesystem and what it is, with the kernel it takes along. Blocking.
    fn to_send(
        &self,
        image: ImageId,
        kernel: Option<VmKernel>,
    ) -> Result<(PathBuf, StagedImage, Option<Taken>), ApiError> {
        let rootfs = self.rootfs(image)?;
        let record = read_record(&self.published(image))
            .ok_or_else(|| ApiError::internal(format!("the record of the image {image} cannot be read")))?;
        let kernel = kernel.map(|kernel| -> Result<_, ApiError> {
            let objects = self.kernels()?;
            objects.check(&kernel)?;
            Ok(Taken { objects, kernel })
        });
        Ok((rootfs, record.image, kernel.transpose()?))
    }
}

/// What every way of sending an image works with.
struct Given {
    rootfs: PathBuf,
    image: StagedImage,
    kernel: Option<Taken>,
    dir: PathBuf,
    options: ImageOptions,
    progress: Reporter,
    cancel: CancellationToken,
}

/// How it goes after a while.
async fn told(mut push: Push, wait_ms: u64) -> PushStatus {
    drop(tokio::time::timeout(Duration::from_millis(wait_ms), push.outcome.wait_for(Option::is_some)).await);
    let outcome = push.outcome.borrow().clone();
    match outcome {
        None => {
            let (phase, progress) = push.progress.now();
            PushStatus::Running { phase, progress }
        }
        Some(Ok(pushed)) => PushStatus::Done { pushed },
        Some(Err(error)) => PushStatus::Failed { error },
    }
}

//! Commands to the host that stages and holds an image: idempotent long-polls, left at once when a cancel comes.

use std::time::Duration;

use contract::{
    ApiError, HostId, ImageId,
    agent::{
        DiscardRequest, ExportBundleRequest, ImageDiscard, ImageExport, ImagePublish, ImagePush, ImageRemove,
        ImageResolve, ImageStage, PublishRequest, PushBundleRequest, PushStatus, PushedBundle, RemoveImageRequest,
        ResolveRequest, ResolvedImage, StageRequest, StageSource, StageStatus, StagedImage, VmKernel,
    },
    deadline,
    image::{ExportRequest, ImageSource},
};
use operations::{Context, StepError};

/// Pause between two long-polls: an agent that does not hold its reply is not asked without end.
const POLL_PAUSE: Duration = Duration::from_millis(20);

/// What a source means, by digest.
///
/// # Errors
/// The operation was cancelled; inside, what the host found.
pub async fn resolve(
    cx: &Context,
    host: &HostId,
    source: &ImageSource,
) -> Result<Result<ResolvedImage, ApiError>, StepError> {
    let request = ResolveRequest { source: source.clone() };
    cx.unless_cancelled(cx.bus().command::<ImageResolve>(host, &request)).await
}

/// Stages an image to the end. A host that is away is asked again until the operation's time is up; what the agent
/// itself found to be wrong ends the operation.
pub async fn stage(cx: &Context, host: &HostId, source: impl Into<StageSource>) -> Result<StagedImage, StepError> {
    let source = source.into();
    loop {
        cx.checkpoint()?;
        let request = StageRequest { fence: cx.fence(), source: source.clone(), wait_ms: deadline::AGENT_POLL_MS };
        let status = cx.unless_cancelled(cx.bus().command::<ImageStage>(host, &request)).await??;
        match status {
            StageStatus::Running { phase, progress } => cx.progress(&phase, progress).await,
            StageStatus::Done { image } => return Ok(image),
            StageStatus::Failed { error } => return Err(StepError::permanent(error)),
        }
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

/// Pushes an image to the end, as [`stage`] stages one.
pub async fn push(
    cx: &Context,
    host: &HostId,
    image: ImageId,
    kernel: Option<VmKernel>,
    reference: &str,
) -> Result<PushedBundle, StepError> {
    loop {
        cx.checkpoint()?;
        let request = PushBundleRequest {
            fence: cx.fence(),
            image,
            kernel: kernel.clone(),
            reference: reference.to_owned(),
            wait_ms: deadline::AGENT_POLL_MS,
        };
        match cx.unless_cancelled(cx.bus().command::<ImagePush>(host, &request)).await?? {
            PushStatus::Running { phase, progress } => cx.progress(&phase, progress).await,
            PushStatus::Done { pushed } => return Ok(pushed),
            PushStatus::Failed { error } => return Err(StepError::permanent(error)),
        }
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

/// Has an image sent as an archive to the end, as [`stage`] stages one.
pub async fn export(
    cx: &Context,
    host: &HostId,
    image: ImageId,
    kernel: Option<VmKernel>,
    export: &ExportRequest,
) -> Result<PushedBundle, StepError> {
    loop {
        cx.checkpoint()?;
        let request = ExportBundleRequest {
            fence: cx.fence(),
            image,
            kernel: kernel.clone(),
            name: export.image.clone(),
            session: export.session,
            wait_ms: deadline::AGENT_POLL_MS,
        };
        match cx.unless_cancelled(cx.bus().command::<ImageExport>(host, &request)).await?? {
            PushStatus::Running { phase, progress } => cx.progress(&phase, progress).await,
            PushStatus::Done { pushed } => return Ok(pushed),
            PushStatus::Failed { error } => return Err(StepError::permanent(error)),
        }
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

/// Renames the staged image to its final place. Called with the name's row lock held.
pub async fn publish(cx: &Context, host: &HostId, image: ImageId) -> Result<StagedImage, ApiError> {
    cx.bus().command::<ImagePublish>(host, &PublishRequest { fence: cx.fence(), image }).await
}

/// Ends the staging and removes what there is of it; nothing there is fine.
pub async fn discard(cx: &Context, host: &HostId) -> Result<(), ApiError> {
    cx.bus().command::<ImageDiscard>(host, &DiscardRequest { fence: cx.fence() }).await.map(drop)
}

/// Removes a published image's files; nothing there is fine.
pub async fn remove(cx: &Context, host: &HostId, image: ImageId) -> Result<(), ApiError> {
    cx.bus().command::<ImageRemove>(host, &RemoveImageRequest { fence: cx.fence(), image }).await.map(drop)
}

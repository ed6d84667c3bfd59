//! Commands about kernels to hosts: idempotent long-polls, left at once when a cancel comes.

use std::time::Duration;

use contract::{
    ApiError, ErrorCode, HostId, KernelId, SessionId,
    agent::{
        DiscardRequest, KernelDiscard, KernelInventory, KernelInventoryRequest, KernelPublish, KernelRemove,
        KernelSend, KernelStage, PublishKernelRequest, RemoveKernelRequest, SendKernelRequest, StageKernelRequest,
        StageKernelSource, StageKernelStatus, StagedKernel,
    },
    deadline,
};
use operations::{Context, StepError};

/// Pause between two long-polls: an agent that does not hold its reply is not asked without end.
const POLL_PAUSE: Duration = Duration::from_millis(20);

/// Stages a kernel to the end; what the agent itself found to be wrong ends it.
pub async fn stage(
    cx: &Context,
    host: &HostId,
    source: &StageKernelSource,
    digest: Option<&str>,
) -> Result<Result<StagedKernel, ApiError>, StepError> {
    loop {
        cx.checkpoint()?;
        let request = StageKernelRequest {
            fence: cx.fence(),
            source: source.clone(),
            digest: digest.map(str::to_owned),
            wait_ms: deadline::AGENT_POLL_MS,
        };
        match cx.unless_cancelled(cx.bus().command::<KernelStage>(host, &request)).await?? {
            StageKernelStatus::Running { progress } => cx.progress("taking files", progress).await,
            StageKernelStatus::Done { kernel } => return Ok(Ok(kernel)),
            StageKernelStatus::Failed { error } => return Ok(Err(error)),
        }
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

/// Whether a host that is to have a kernel has it whole. An agent that cannot be asked, or is too old for the question, is believed to.
pub async fn whole(cx: &Context, host: &HostId, kernel: KernelId, digest: &str) -> Result<bool, StepError> {
    let request = KernelInventoryRequest { only: Some(kernel) };
    match cx.unless_cancelled(cx.bus().command::<KernelInventory>(host, &request)).await? {
        Ok(here) => {
            let here = here.kernels.first();
            Ok(here.is_some_and(|here| here.damage.is_none() && here.digest.as_deref() == Some(digest)))
        }
        Err(error) if error.code == ErrorCode::Unavailable => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Has a host send a kernel to whoever accepts that stream.
pub async fn send(cx: &Context, host: &HostId, kernel: KernelId, session: SessionId) -> Result<(), ApiError> {
    cx.bus().command::<KernelSend>(host, &SendKernelRequest { kernel, session }).await.map(drop)
}

/// Renames the staged kernel to its final place. Called with a row lock held.
pub async fn publish(cx: &Context, host: &HostId, kernel: KernelId) -> Result<StagedKernel, ApiError> {
    cx.bus().command::<KernelPublish>(host, &PublishKernelRequest { fence: cx.fence(), kernel }).await
}

/// Ends the staging and removes what there is of it; nothing there is fine.
pub async fn discard(cx: &Context, host: &HostId) -> Result<(), ApiError> {
    cx.bus().command::<KernelDiscard>(host, &DiscardRequest { fence: cx.fence() }).await.map(drop)
}

/// Removes a published kernel's files; nothing there is fine.
pub async fn remove(cx: &Context, host: &HostId, kernel: KernelId) -> Result<(), ApiError> {
    cx.bus().command::<KernelRemove>(host, &RemoveKernelRequest { fence: cx.fence(), kernel }).await.map(drop)
}

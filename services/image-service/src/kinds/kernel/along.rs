//! A kernel that goes **along** with an image: brought to the host that packs it, and published with the image that is made of it, in the same
//! transaction. One that comes has the image's id, minted with the operation; it has no name until somebody gives it one.

use bus::CallOptions;
use contract::{
    ApiError, ErrorCode, HostId, ImageId, KernelId,
    agent::{StagedKernel, VmKernel},
    kernel::{Place, PlaceRequest},
    operation::{self, Operation, OperationState, Seen, WaitRequest},
};
use operations::{Context, Kind, StepError};

use super::{agent, nothing_left};
use crate::{
    db::{
        image::image_get,
        kernel::{
            lookup::kernel_get,
            removal::{removal_done, removal_list},
            withdrawal::{Taken, Withdrawn, kernel_withdraw},
        },
        name::Held,
    },
    kinds::publish::{Made, claim_lost},
};

/// How long one round of waiting for a placement lasts, in milliseconds: then a cancel is looked for.
const ROUND_MS: u64 = 2_000;

fn id(image: ImageId) -> KernelId {
    KernelId(image.0)
}

/// The kernel an image names, which the host has from now on; none where it names none.
///
/// # Errors
/// The image is gone, or the kernel cannot be brought to the host.
pub async fn brought(cx: &Context, image: ImageId, host: &HostId) -> Result<Option<VmKernel>, StepError> {
    let client = cx.store().client().await?;
    let image = image_get(&client, image).await?;
    let image = image.ok_or_else(|| StepError::permanent(ApiError::not_found("the image was deleted meanwhile")))?;
    let Some(kernel) = image.kernel else { return Ok(None) };
    let noted = kernel_get(&client, kernel.id).await?.is_some_and(|kernel| kernel.hosts.contains(host));
    drop(client);
    if !(noted && agent::whole(cx, host, kernel.id, &kernel.digest).await?) {
        bring(cx, &kernel, host).await?;
    }
    Ok(Some(kernel))
}

/// The request key makes a repeat wait for the same placement.
async fn bring(cx: &Context, kernel: &VmKernel, host: &HostId) -> Result<(), StepError> {
    let request =
        PlaceRequest { kernel: kernel.id, host: host.clone(), wait: false, timeout_ms: operation::default_wait_ms() };
    let options = CallOptions { request_key: Some(format!("{}-kernel", cx.operation())), ..CallOptions::default() };
    let mut placing: Operation = cx.bus().call_with::<Place>(&request, options).await?;
    while !placing.state.is_final() {
        cx.checkpoint()?;
        cx.progress("kernel", placing.progress.unwrap_or_default()).await;
        let seen = Seen { state: placing.state, phase: placing.phase.clone(), progress: placing.progress };
        let request = WaitRequest { id: placing.id, timeout_ms: ROUND_MS, changed_from: Some(seen) };
        placing = cx.unless_cancelled(cx.bus().call::<operation::Wait>(&request)).await??;
    }
    if placing.state == OperationState::Succeeded {
        return Ok(());
    }
    let mut error = placing.error.unwrap_or_else(|| ApiError::internal("the placement failed without saying why"));
    if error.code == ErrorCode::Cancelled {
        // Not this operation was cancelled but the placement it needs.
        error = ApiError::aborted("the placement was cancelled");
    }
    error.message = format!(
        "the image names the kernel {}, which cannot be brought to its host {host}: {}",
        kernel.release, error.message
    );
    Err(StepError::permanent(error))
}

/// Makes what was staged with an image the lab's, and has the image name it. A repeat does it all again.
///
/// # Errors
/// The host or the database could not.
pub async fn publish<K: Kind>(
    cx: &Context,
    held: &Held<'_>,
    made: &Made<'_>,
    host: &HostId,
    staged: &StagedKernel,
) -> Result<(), StepError> {
    let own = id(made.id);
    let kernel = held.kernel(own, &made.source, staged).await?;
    // Also where the host is to have it already: it may have lost it, and what is whole there stays.
    match agent::publish(cx, host, kernel).await {
        Ok(_) => {
            runtime::fault::point(&format!("{}/publish/kernel", K::NAME));
            held.kernel_replicate(kernel, host).await?;
        }
        Err(error) if nothing_left(&error) && held.kernel_there(kernel, host).await? => {}
        Err(error) => return Err(error.into()),
    }
    if kernel != own {
        // An earlier try may have brought the files to a place that is not theirs any more, as somebody else was faster.
        agent::remove(cx, host, own).await?;
    }
    Ok(held.name_kernel(made.id, kernel, kernel == own).await?)
}

/// Takes back a kernel that came with an image which this operation took back: rows first, if they were committed; then the files, unless it
/// has a name or is used by now. Its staging went with the image's.
///
/// # Errors
/// The database or the host could not.
pub async fn take_back(cx: &Context, host: &HostId, image: ImageId) -> Result<(), StepError> {
    let id = id(image);
    let mut client = cx.store().client().await?;
    match kernel_withdraw(&mut client, cx.fence(), id, Taken::Nothing).await? {
        Withdrawn::Done => {}
        Withdrawn::ClaimLost => return Err(StepError::retry(claim_lost())),
        Withdrawn::Named | Withdrawn::InUse(_) => {
            tracing::info!(kernel.id = %id, "a kernel that came with an image is used already, and stays");
            return Ok(());
        }
    }
    drop(client);
    agent::remove(cx, host, id).await?;
    let client = cx.store().client().await?;
    for removal in removal_list(&client, id).await?.iter().filter(|removal| removal.host == *host) {
        removal_done(&client, removal).await?;
    }
    Ok(())
}

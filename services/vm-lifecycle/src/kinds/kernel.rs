//! The kernel of a VM: which of the lab's it is, if it is one, and that its host has it.

use bus::CallOptions;
use contract::{
    ApiError, ErrorCode, HostId, ImageId, KernelName, VmId, VmName,
    agent::{KernelInventory, KernelInventoryRequest, VmKernel},
    kernel::{Choose, ChooseRequest, Get, KernelRef, Place, PlaceRequest},
    operation::{self, Operation, OperationState, Seen, WaitRequest},
};
use operations::{Context, StepError};
use store::StoreError;

use crate::db::vm::vm_set_kernel;

/// How long one round of waiting for a placement lasts, in milliseconds: then a cancel is looked for.
const ROUND_MS: u64 = 2_000;

/// The foreign key from a VM to its kernel (migrations/V0013__kernel.sql).
const VM_KERNEL: &str = "vm_kernel";

/// Which of the lab's kernels a VM boots: the one it asks for, its image's, or the default. None: what it asks for is its host's own affair.
///
/// # Errors
/// What image-service answered.
pub async fn choose(cx: &Context, asked: Option<&KernelName>, image: ImageId) -> Result<Option<VmKernel>, StepError> {
    let choice = cx.bus().call::<Choose>(&ChooseRequest { kernel: asked.cloned(), image }).await?;
    Ok(choice.kernel.map(|kernel| VmKernel { id: kernel.id, digest: kernel.digest, release: kernel.release }))
}

/// Whether a kernel of that name is the lab's, so that any host may be given it.
///
/// # Errors
/// What image-service answered.
pub async fn is_the_labs(cx: &Context, name: &KernelName) -> Result<bool, StepError> {
    match cx.bus().call::<Get>(&KernelRef { kernel: name.to_string() }).await {
        Ok(_) => Ok(true),
        Err(error) if error.code == ErrorCode::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Takes down that the VM boots this kernel, which is there from then on for as long as the VM is.
///
/// # Errors
/// `failed_precondition`: it was deleted meanwhile.
pub async fn take(cx: &Context, vm: VmId, name: &VmName, kernel: &VmKernel) -> Result<(), StepError> {
    let client = cx.store().client().await?;
    match vm_set_kernel(&client, vm, cx.epoch(), kernel.id).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(ApiError::aborted(format!("another operation holds VM {name}")).into()),
        Err(StoreError::Constraint { name: constraint, .. }) if constraint == VM_KERNEL => {
            let error = ApiError::failed_precondition(format!(
                "the kernel {} for VM {name} was deleted before the VM had it",
                kernel.release
            ));
            Err(StepError::permanent(error.hint("`warren kernel ls` lists the kernels; create the VM again")))
        }
        Err(error) => Err(error.into()),
    }
}

/// Has the kernel brought to the host where that has lost it: its directory was removed, or its disk replaced. A host that cannot be asked, or is
/// too old for the question, is left to say itself what it lacks.
///
/// # Errors
/// It cannot be brought there: no other host has it, and what to do then.
pub async fn bring_back(cx: &Context, kernel: &VmKernel, host: &HostId) -> Result<(), StepError> {
    let request = KernelInventoryRequest { only: Some(kernel.id) };
    let here = tokio::select! {
        here = cx.bus().command::<KernelInventory>(host, &request) => here,
        () = cx.cancelled() => return cx.checkpoint(),
    };
    match here.map(|here| here.kernels.into_iter().next()) {
        Ok(Some(here)) if here.damage.is_none() && here.digest.as_ref() == Some(&kernel.digest) => Ok(()),
        Ok(_) => {
            tracing::info!(kernel.id = %kernel.id, host.id = %host, "a host has lost a kernel");
            bring(cx, kernel, host).await
        }
        Err(error) if error.code == ErrorCode::Unavailable => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Has the kernel brought to the host, unless it is there, and waits for that. The request key makes a repeat wait for the same placement.
///
/// # Errors
/// It cannot be brought there: no host that has it is up, or this one has no room.
pub async fn bring(cx: &Context, kernel: &VmKernel, host: &HostId) -> Result<(), StepError> {
    let request =
        PlaceRequest { kernel: kernel.id, host: host.clone(), wait: false, timeout_ms: operation::default_wait_ms() };
    let options = CallOptions { request_key: Some(format!("{}-kernel", cx.operation())), ..CallOptions::default() };
    let mut placing: Operation = cx.bus().call_with::<Place>(&request, options).await?;
    while !placing.state.is_final() {
        cx.checkpoint()?;
        cx.progress("kernel", placing.progress.unwrap_or_default()).await;
        let seen = Seen { state: placing.state, phase: placing.phase.clone(), progress: placing.progress };
        let request = WaitRequest { id: placing.id, timeout_ms: ROUND_MS, changed_from: Some(seen) };
        placing = tokio::select! {
            waited = cx.bus().call::<operation::Wait>(&request) => waited?,
            () = cx.cancelled() => continue,
        };
    }
    if placing.state == OperationState::Succeeded {
        return Ok(());
    }
    let mut error = placing.error.unwrap_or_else(|| ApiError::internal("the placement failed without saying why"));
    if error.code == ErrorCode::Cancelled {
        // Not this operation was cancelled but the placement it needs.
        error = ApiError::aborted("the placement was cancelled");
    }
    error.message = format!("the kernel {} cannot be brought to host {host}: {}", kernel.release, error.message);
    Err(StepError::permanent(error))
}

//! What steps do to VM rows, in the words of operations.

use contract::{ApiError, HostId, VmId, VmName, vm::VmState};
use operations::{Context, StepError};
use store::StoreError;

use crate::{
    db::vm::{Changed, Patch, VmRow, vm_apply, vm_find},
    domain::state::Event,
};

/// The VM's row.
///
/// # Errors
/// `not_found`, or the database could not.
pub async fn row(cx: &Context, domain: &str, vm: VmId, name: &VmName) -> Result<VmRow, StepError> {
    let client = cx.store().client().await?;
    let row = vm_find(&client, domain, &vm.to_string()).await?;
    row.ok_or_else(|| gone(name))
}

fn gone(name: &VmName) -> StepError {
    StepError::permanent(ApiError::not_found(format!("VM {name} is gone")).hint("`warren vm ls` lists the VMs"))
}

/// The host a VM is on, once it is reserved.
///
/// # Errors
/// The database could not.
pub async fn host(cx: &Context, vm: VmId) -> Result<Option<HostId>, StepError> {
    let client = cx.store().client().await?;
    let statement = client.prepare_cached("select host_id from vm.vm where id = $1").await.map_err(StoreError::from)?;
    let row = client.query_opt(&statement, &[&vm.0]).await.map_err(StoreError::from)?;
    let host = row.map(|row| row.get::<_, String>(0).parse()).transpose();
    host.map_err(|error| StepError::permanent(ApiError::internal(format!("a VM's host: {error}"))))
}

/// Applies an event in the name of this operation. Gives where the VM stood before and stands now.
///
/// # Errors
/// `not_found`, `failed_precondition` when its state does not allow it, `aborted` when another operation holds it.
pub async fn apply(
    cx: &Context,
    vm: VmId,
    name: &VmName,
    event: Event,
    patch: &Patch,
) -> Result<(VmState, VmState), StepError> {
    match vm_apply(cx.store(), vm, cx.epoch(), event, patch).await? {
        Changed::Updated { was, now } => Ok((was, now)),
        // The lease is lost already, or will be at its next renewal: this worker changes nothing any more.
        Changed::Stale => Err(ApiError::aborted(format!("another operation holds VM {name}")).into()),
        Changed::NotFound => Err(gone(name)),
        Changed::Denied(denied) => {
            Err(StepError::permanent(ApiError::failed_precondition(format!("VM {name}: {denied}"))))
        }
    }
}

/// Takes an event back; a VM that is gone, or moved on, has nothing to be taken back.
///
/// # Errors
/// The database could not.
pub async fn take_back(cx: &Context, vm: VmId, event: Event, reason: Option<String>) -> Result<(), StepError> {
    // A start that failed is an end nobody asked for: the restart policy has a word in it.
    let by_itself = event == Event::StartUndone { cancelled: false };
    let patch = Patch { reason, by_itself, ..Patch::default() };
    match vm_apply(cx.store(), vm, cx.epoch(), event, &patch).await? {
        Changed::Updated { .. } | Changed::NotFound | Changed::Stale | Changed::Denied(_) => Ok(()),
    }
}

/// Why the operation in hand is being undone.
///
/// # Errors
/// The database could not.
pub async fn failure(cx: &Context) -> Result<ApiError, StepError> {
    let operation = operations::get(cx.store(), cx.operation()).await?;
    Ok(operation.error.unwrap_or_else(|| ApiError::internal("the operation was given up")))
}

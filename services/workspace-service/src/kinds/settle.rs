//! **Settling** what is pending of workspaces: the guest is asked what became of a transfer, and the row says so.

use contract::{ApiError, HostId, OperationId, vm::Vm, worktree::TransferSummary};
use operations::{Context, StepError};

use super::{
    claim_lost,
    host::{self, Ended, Target},
};
use crate::db::pending::{Noted, Pending, Unsettled, What, pending_note, pending_of, pending_settle};

/// Notes a transfer, before its host is told to begin.
///
/// # Errors
/// The workspace is gone, or another worker has the operation.
pub async fn note(cx: &Context, vm: &Target, path: &str, pending: &Pending) -> Result<(), StepError> {
    let mut client = cx.store().client().await?;
    match pending_note(&mut client, cx.fence(), vm.id, path, pending).await? {
        Noted::Yes => Ok(()),
        Noted::Gone => Err(StepError::permanent(vm.deleted())),
        Noted::ClaimLost => Err(claim_lost()),
    }
}

/// What is pending at a path.
///
/// # Errors
/// The database could not.
pub async fn at(cx: &Context, vm: &Target, path: &str) -> Result<Option<Unsettled>, StepError> {
    let client = cx.store().client().await?;
    Ok(pending_of(&client, vm.id).await?.into_iter().find(|unsettled| unsettled.path == path))
}

/// The VM, which runs, and of whose workspaces nothing is pending that operations before this one left.
///
/// # Errors
/// It does not run, or its guest does not tell now what became of something.
pub async fn ready(cx: &Context, vm: &Target) -> Result<Vm, StepError> {
    let running = vm.running(cx).await?;
    before(cx, vm, &running.host).await?;
    Ok(running)
}

async fn before(cx: &Context, vm: &Target, host: &HostId) -> Result<(), StepError> {
    let client = cx.store().client().await?;
    let all = pending_of(&client, vm.id).await?;
    drop(client);
    for unsettled in all {
        if !settle(cx, vm, host, &unsettled).await? {
            return Err(not_told(vm));
        }
    }
    Ok(())
}

/// Ends what is pending, for an undo, and settles it. Where the guest does not run, the next to come settles it.
///
/// # Errors
/// Its host cannot be reached.
pub async fn call_off(cx: &Context, vm: &Target, host: &HostId, path: &str) -> Result<(), StepError> {
    if let Some(unsettled) = at(cx, vm, path).await? {
        let settled = settle(cx, vm, host, &unsettled).await?;
        tracing::debug!(settled, vm.id = %vm.id, path, "a transfer was called off");
    }
    Ok(())
}

/// What the guest cannot be asked for now.
pub fn not_told(vm: &Target) -> StepError {
    StepError::retry(ApiError::unavailable(format!(
        "VM {} does not tell now what became of an earlier transfer of its workspaces",
        vm.name
    )))
}

/// Whether the guest told what became of it.
async fn settle(cx: &Context, vm: &Target, host: &HostId, unsettled: &Unsettled) -> Result<bool, StepError> {
    let ended = host::ended(cx, vm, host, asked(&unsettled.pending)).await?;
    let Some(done) = outcome(&unsettled.pending.what, ended) else { return Ok(false) };
    let mut client = cx.store().client().await?;
    pending_settle(&mut client, unsettled, done.as_ref()).await?;
    Ok(true)
}

/// The transfer to ask the guest for.
pub fn asked(pending: &Pending) -> OperationId {
    match pending.what {
        // It has the base still, or not.
        What::Remove { generation } => generation,
        What::Prepare { .. } | What::Advance => pending.transfer,
    }
}

/// What it did, if it did anything; nothing where the guest did not tell.
pub fn outcome(what: &What, ended: Ended) -> Option<Option<TransferSummary>> {
    match (what, ended) {
        (_, Ended::NotTold) => None,
        (What::Remove { .. }, Ended::Done(_)) => Some(None),
        (What::Remove { .. }, Ended::Nothing) => Some(Some(TransferSummary::default())),
        (_, Ended::Done(summary)) => Some(Some(summary)),
        (_, Ended::Nothing) => Some(None),
    }
}

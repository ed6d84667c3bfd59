//! The host's part of a transfer: commands that may be repeated, and long-polls that are left at once when a cancel comes.
//!
//! Nothing here holds the VM's claim. What becomes of the VM meanwhile is told by its host, or found out from vm-lifecycle when the host
//! says nothing, and ends the operation.

use std::time::{Duration, Instant};

use bus::CallOptions;
use contract::{
    AgentVerb, ApiError, ErrorCode, HostId, OperationId, VmId, VmName,
    agent::{TransferRequest, WorkspaceAbort, WorkspaceStatus},
    deadline,
    operation::Progress,
    vm::{self, Vm, VmRef},
    worktree::{TransferStatus, TransferSummary},
};
use operations::{Context, StepError};
use serde::{Deserialize, Serialize};

use crate::domain::access;

/// Pause between two long-polls: a host that does not hold its reply is not asked without end.
const POLL_PAUSE: Duration = Duration::from_millis(20);
/// Pause before a command that failed is repeated.
const REPEAT_PAUSE: Duration = Duration::from_millis(300);
/// How long vm-lifecycle may take to say where a VM is: one SQL statement.
const LOOKUP: Duration = Duration::from_secs(4);
/// How long a guest that has been told of a transfer may not know of it: longer than the reply to its order may overtake the order itself.
const UNKNOWN_GRACE: Duration = Duration::from_secs(2);

/// A VM as an operation knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Target {
    /// Its id.
    pub id: VmId,
    /// Its name when the operation was accepted.
    pub name: VmName,
}

impl Target {
    /// Of a VM as it is now.
    pub fn of(vm: &Vm) -> Self {
        Self { id: vm.id, name: vm.name.clone() }
    }

    /// The VM, whose guest must run: read in passing, and never held.
    ///
    /// # Errors
    /// It does not run or is gone (for good), or vm-lifecycle cannot be asked (not for good).
    pub async fn running(&self, cx: &Context) -> Result<Vm, StepError> {
        let options = CallOptions { timeout: Some(LOOKUP), ..CallOptions::default() };
        let request = VmRef { vm: self.id.to_string() };
        let vm = match cx.unless_cancelled(cx.bus().call_with::<vm::Get>(&request, options)).await? {
            Ok(vm) => vm,
            Err(error) if error.code == ErrorCode::NotFound => return Err(StepError::permanent(self.deleted())),
            Err(error) => return Err(StepError::retry(error)),
        };
        access::running(&vm).map_err(StepError::permanent)?;
        Ok(vm)
    }

    /// What is said of one that is gone.
    pub fn deleted(&self) -> ApiError {
        ApiError::failed_precondition(format!("VM {} was deleted", self.name)).hint("`warren vm ls` lists the VMs")
    }

    fn started_anew(&self) -> ApiError {
        ApiError::failed_precondition(format!("VM {} was started anew before the transfer had ended", self.name))
            .hint("ask again: what was moved until then is gone, and the workspace is what it was")
    }
}

/// How long a host may say nothing, and what is known of its VM then.
struct Silence<'a> {
    vm: &'a Target,
    patience: Duration,
    since: Instant,
}

impl<'a> Silence<'a> {
    fn new(vm: &'a Target, patience: Duration) -> Self {
        Self { vm, patience, since: Instant::now() }
    }

    /// The host answered.
    fn broken(&mut self) {
        self.since = Instant::now();
    }

    /// The host could not: whether it may be asked again. A VM that does not run any more is a better reason than its host's silence.
    async fn endured(&self, cx: &Context, error: ApiError) -> Result<(), StepError> {
        if !error.retryable {
            return Err(StepError::permanent(match error.code {
                ErrorCode::NotFound => self.vm.deleted(),
                _ => error,
            }));
        }
        match self.vm.running(cx).await {
            Err(gone) if !gone.retry => return Err(gone),
            // Whoever cannot be asked now is no reason to give up.
            Ok(_) | Err(_) => {}
        }
        if self.since.elapsed() >= self.patience {
            let message =
                format!("the host of VM {} was silent for {} s: {error}", self.vm.name, self.patience.as_secs());
            return Err(StepError::permanent(
                ApiError::deadline_exceeded(message).hint("`warren host ls` tells whether it is up"),
            ));
        }
        cx.checkpoint()?;
        tokio::time::sleep(REPEAT_PAUSE).await;
        Ok(())
    }
}

/// Gives a host a command until it has taken it.
///
/// # Errors
/// It refused, its VM does not run any more, or it was silent for too long.
pub async fn command<A: AgentVerb>(
    cx: &Context,
    vm: &Target,
    host: &HostId,
    patience: Duration,
    request: &A::Request,
) -> Result<A::Reply, StepError> {
    let silence = Silence::new(vm, patience);
    loop {
        cx.checkpoint()?;
        match cx.unless_cancelled(cx.bus().command::<A>(host, request)).await? {
            Ok(reply) => return Ok(reply),
            Err(error) => silence.endured(cx, error).await?,
        }
    }
}

/// Watches a transfer that has begun to its end. One that had its effect before a cancel or the end of all patience came is done.
///
/// # Errors
/// It failed, its VM does not run any more or was started anew, or its host was silent for too long.
pub async fn watch(
    cx: &Context,
    vm: &Target,
    host: &HostId,
    patience: Duration,
    transfer: OperationId,
) -> Result<TransferSummary, StepError> {
    let left = match watched(cx, vm, host, patience, transfer).await {
        Err(error) if matches!(error.error.code, ErrorCode::Cancelled | ErrorCode::DeadlineExceeded) => error,
        outcome => return outcome,
    };
    match ended(cx, vm, host, transfer).await {
        Ok(Ended::Done(summary)) => Ok(summary),
        Ok(Ended::Nothing | Ended::NotTold) | Err(_) => Err(left),
    }
}

/// What a guest tells of a transfer that was ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// It was too late to end it: what it did.
    Done(TransferSummary),
    /// It did nothing.
    Nothing,
    /// The guest does not run, and cannot be asked.
    NotTold,
}

/// Ends a transfer, and asks what it did.
///
/// # Errors
/// Its host cannot be reached, or does not tell how it ended.
pub async fn ended(cx: &Context, vm: &Target, host: &HostId, transfer: OperationId) -> Result<Ended, StepError> {
    let request = TransferRequest { vm: vm.id, operation: transfer, wait_ms: 0 };
    let aborted = cx.bus().command::<WorkspaceAbort>(host, &request).await.map(drop);
    if let Err(error) = aborted {
        return not_told(cx, vm, error).await;
    }
    let request = TransferRequest { wait_ms: deadline::AGENT_POLL_MS, ..request };
    match cx.bus().command::<WorkspaceStatus>(host, &request).await {
        Ok(TransferStatus::Done { summary }) => Ok(Ended::Done(summary)),
        Ok(TransferStatus::Failed { .. } | TransferStatus::Unknown) => Ok(Ended::Nothing),
        Ok(TransferStatus::Running { .. }) => Err(StepError::retry(ApiError::busy("the transfer has not ended yet"))),
        Err(error) => not_told(cx, vm, error).await,
    }
}

/// Whether the guest runs no more, so that its host's answer is final.
async fn not_told(cx: &Context, vm: &Target, error: ApiError) -> Result<Ended, StepError> {
    if matches!(error.code, ErrorCode::NotFound | ErrorCode::FailedPrecondition) {
        return Ok(Ended::NotTold);
    }
    // The host is away; so may the VM be, for good.
    match vm.running(cx).await {
        Err(gone) if !gone.retry => Ok(Ended::NotTold),
        Ok(_) | Err(_) => Err(StepError::retry(error)),
    }
}

async fn watched(
    cx: &Context,
    vm: &Target,
    host: &HostId,
    patience: Duration,
    transfer: OperationId,
) -> Result<TransferSummary, StepError> {
    let mut silence = Silence::new(vm, patience);
    let mut unknown: Option<Instant> = None;
    let request = TransferRequest { vm: vm.id, operation: transfer, wait_ms: deadline::AGENT_POLL_MS };
    loop {
        cx.checkpoint()?;
        let status = match cx.unless_cancelled(cx.bus().command::<WorkspaceStatus>(host, &request)).await? {
            Ok(status) => status,
            Err(error) => {
                silence.endured(cx, error).await?;
                continue;
            }
        };
        silence.broken();
        match status {
            TransferStatus::Running { phase, done, total } => {
                unknown = None;
                cx.progress(&phase, Progress { done, total }).await;
            }
            TransferStatus::Done { summary } => return Ok(summary),
            TransferStatus::Failed { error } => return Err(StepError::permanent(error)),
            TransferStatus::Unknown => {
                // Where the VM does not run, that is the reason.
                match vm.running(cx).await {
                    Err(gone) if !gone.retry => return Err(gone),
                    Ok(_) | Err(_) => {}
                }
                if unknown.get_or_insert_with(Instant::now).elapsed() >= UNKNOWN_GRACE {
                    return Err(StepError::permanent(vm.started_anew()));
                }
                tokio::time::sleep(REPEAT_PAUSE).await;
            }
        }
        tokio::time::sleep(POLL_PAUSE).await;
    }
}

/// Ends a transfer, for an undo. A VM that does not run, or is gone, has none.
///
/// # Errors
/// Its host cannot be reached.
pub async fn abort(cx: &Context, vm: &Target, host: &HostId, transfer: OperationId) -> Result<(), StepError> {
    let request = TransferRequest { vm: vm.id, operation: transfer, wait_ms: 0 };
    match cx.bus().command::<WorkspaceAbort>(host, &request).await {
        Ok(_) => Ok(()),
        Err(error) => not_told(cx, vm, error).await.map(drop),
    }
}

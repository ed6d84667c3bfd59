//! The throw-away **VM** of a step, through vm-lifecycle's verbs. Its name and the keys of its operations follow from the step's operation,
//! so that whoever adopts that finds the same VM.

use std::time::{Duration, Instant};

use bus::CallOptions;
use contract::{
    ApiError, ErrorCode, HostId, OperationId, Verb, VmId, VmName, deadline,
    operation::{self, Operation, OperationState, Seen, VmResult, WaitRequest, default_wait_ms},
    vm::{self, CreateRequest, LifecycleRequest, Vm, VmRef, VmState},
};
use futures::{FutureExt, future::BoxFuture};
use operations::{Context, StepError};
use serde::{Deserialize, Serialize};

use super::step::StepOrder;
use crate::db::child::child_find;

/// How long one round of waiting for an operation lasts, in milliseconds: then a cancel is looked for.
const ROUND_MS: u64 = 2_000;
/// How long vm-lifecycle may be away: longer than its restart takes.
const PATIENCE: Duration = Duration::from_secs(45);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(500);
/// How long an undo waits for an operation of the VM before it comes round again.
const UNDO_WAIT: Duration = Duration::from_secs(15);
/// The label by which it is told whose a VM is.
const LABEL: &str = "warren.build";

/// The VM of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// Its host.
    pub host: HostId,
}

/// What the VM of a step is called.
///
/// # Errors
/// That is no VM name, which the form of ids excludes.
pub fn name(step: OperationId) -> Result<VmName, StepError> {
    let name = format!("build-{}", VmId(step.0).tail());
    name.parse().map_err(|error| StepError::permanent(ApiError::internal(format!("{name} is no VM name: {error}"))))
}

fn request(step: OperationId, order: &StepOrder) -> Result<CreateRequest, StepError> {
    let internal = |error: &dyn std::fmt::Display| StepError::permanent(ApiError::internal(error.to_string()));
    let mut request = CreateRequest::new(name(step)?, &order.base.digest);
    (request.cpus, request.memory, request.disk) = (order.cpus, order.memory, order.disk);
    request.features.network = order.network;
    // What the image is for is not what is done here. An image with an init of its own boots that.
    request.features.entrypoint = Some(Vec::new());
    let label = LABEL.parse().map_err(|error| internal(&error))?;
    request.labels.insert(label, order.build.to_string().parse().map_err(|error| internal(&error))?);
    // Should nobody be left to delete it.
    request.ttl_seconds = Some(order.script_seconds + deadline::BUILD_STEP.as_secs());
    Ok(request)
}

/// Creates the VM and waits until it runs. A repeat waits for the same.
///
/// # Errors
/// It cannot be created, or the step was cancelled.
pub async fn create(cx: &Context, order: &StepOrder) -> Result<Machine, StepError> {
    let request = request(cx.operation(), order)?;
    let operation = accepted::<vm::Create>(cx, &request, "create").await?;
    let operation = finished(cx, operation, "boot").await?;
    let made = succeeded(operation, "created")?;
    let vm = show(cx, made).await?;
    Ok(Machine { id: vm.id, name: vm.name, host: vm.host })
}

/// Powers the VM off and waits until that is done.
///
/// # Errors
/// It cannot be stopped, or the step was cancelled.
pub async fn stop(cx: &Context, machine: &Machine) -> Result<(), StepError> {
    let operation = accepted::<vm::Stop>(cx, &lifecycle(machine.id, false), "stop").await?;
    let operation = finished(cx, operation, "stop").await?;
    succeeded(operation, "stopped").map(drop)
}

/// Deletes the VM and waits for that, for a while: after that its time to live sees to it.
///
/// # Errors
/// It cannot be deleted now.
pub async fn delete(cx: &Context, id: VmId) -> Result<(), StepError> {
    let key = options(cx, "delete");
    let mut operation = match cx.bus().call_with::<vm::Delete>(&lifecycle(id, true), key).await {
        Ok(operation) => operation,
        Err(error) if error.code == ErrorCode::NotFound => return Ok(()),
        Err(error) => return Err(StepError::retry(error)),
    };
    let give_up = Instant::now() + UNDO_WAIT;
    while !operation.state.is_final() {
        if Instant::now() >= give_up {
            return Err(StepError::retry(ApiError::unavailable("the VM of the build is not deleted yet")));
        }
        operation = round(cx, &operation).await?;
    }
    match operation.error {
        Some(error) if error.code != ErrorCode::NotFound => Err(StepError::retry(error)),
        _ => Ok(()),
    }
}

/// Deletes the VM whatever became of its create. For an undo.
///
/// # Errors
/// It cannot be deleted now.
pub async fn undo(cx: &Context, order: &StepOrder) -> Result<(), StepError> {
    let client = cx.store().client().await?;
    let create = child_find(&client, "vm.create", &key(cx, "create")).await?;
    drop(client);
    let create = match create {
        Some(create) => create,
        // It may be on its way to vm-lifecycle still. Asked for once more under its key it is the same operation, whichever comes first,
        // and one that is there can be called off.
        None => {
            let request = request(cx.operation(), order)?;
            match cx.bus().call_with::<vm::Create>(&request, options(cx, "create")).await {
                Ok(operation) => operation.id,
                Err(error) if error.retryable => return Err(StepError::retry(error)),
                // Refused, and so is the other.
                Err(error) => {
                    tracing::debug!(%error, "the VM of a build was never to be");
                    return Ok(());
                }
            }
        }
    };
    let give_up = Instant::now() + UNDO_WAIT;
    let mut operation = operations::get(cx.store(), create).await?;
    while !operation.state.is_final() {
        if !operation.cancel_requested {
            operations::cancel(cx.store(), cx.bus(), create).await?;
        }
        if Instant::now() >= give_up {
            return Err(StepError::retry(ApiError::unavailable("the create of the build's VM has not ended yet")));
        }
        operation = round(cx, &operation).await?;
    }
    // One that did not succeed has undone itself.
    match operation.state {
        OperationState::Succeeded => delete(cx, succeeded(operation, "created")?).await,
        _ => Ok(()),
    }
}

/// Ends the step if the VM runs no more; while that cannot be known, it may run.
///
/// # Errors
/// It does not run, and why.
pub async fn check_running(cx: &Context, machine: &Machine) -> Result<(), StepError> {
    let vm = match cx.bus().call::<vm::Get>(&VmRef { vm: machine.id.to_string() }).await {
        Ok(vm) => vm,
        Err(error) if error.code == ErrorCode::NotFound => {
            return Err(ended(&machine.name, "it was deleted"));
        }
        Err(error) => {
            tracing::info!(%error, "vm-lifecycle does not say how the VM of a build is");
            return Ok(());
        }
    };
    match vm.state {
        VmState::Running | VmState::Paused => Ok(()),
        state => Err(ended(&vm.name, vm.reason.as_deref().unwrap_or(state.as_str()))),
    }
}

fn ended(name: &VmName, why: &str) -> StepError {
    let message = format!("the VM {name} ended before the script did: {why}");
    StepError::permanent(
        ApiError::failed_precondition(message)
            .hint("a script that wants more memory or disk gets it with `--memory` and `--disk`"),
    )
}

async fn show(cx: &Context, id: VmId) -> Result<Vm, StepError> {
    let request = VmRef { vm: id.to_string() };
    patiently(cx, || cx.bus().call::<vm::Get>(&request).boxed()).await
}

fn lifecycle(id: VmId, force: bool) -> LifecycleRequest {
    LifecycleRequest { vm: id.to_string(), force, wait: false, timeout_ms: default_wait_ms() }
}

fn key(cx: &Context, what: &str) -> String {
    format!("{}/{what}", cx.operation())
}

fn options(cx: &Context, what: &str) -> CallOptions {
    CallOptions { timeout: Some(deadline::QUICK), request_key: Some(key(cx, what)) }
}

async fn accepted<V: Verb<Reply = Operation>>(
    cx: &Context,
    request: &V::Request,
    what: &str,
) -> Result<Operation, StepError> {
    patiently(cx, || cx.bus().call_with::<V>(request, options(cx, what)).boxed()).await
}

/// Asks until there is an answer, for a while.
async fn patiently<'a, T>(
    cx: &Context,
    ask: impl Fn() -> BoxFuture<'a, Result<T, ApiError>> + Send + Sync,
) -> Result<T, StepError> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        cx.checkpoint()?;
        match cx.unless_cancelled(ask()).await? {
            Ok(answer) => return Ok(answer),
            Err(error) if error.retryable && Instant::now() < give_up => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(StepError::permanent(error)),
        }
    }
}

/// Waits for an operation's end, with what it does shown.
async fn finished(cx: &Context, mut operation: Operation, phase: &str) -> Result<Operation, StepError> {
    while !operation.state.is_final() {
        cx.checkpoint()?;
        cx.progress(phase, operation.progress.unwrap_or_default()).await;
        operation = tokio::select! {
            now = round(cx, &operation) => now?,
            () = cx.cancelled() => continue,
        };
    }
    Ok(operation)
}

/// One round of waiting.
async fn round(cx: &Context, operation: &Operation) -> Result<Operation, StepError> {
    let seen = Seen { state: operation.state, phase: operation.phase.clone(), progress: operation.progress };
    let request = WaitRequest { id: operation.id, timeout_ms: ROUND_MS, changed_from: Some(seen) };
    Ok(cx.bus().call::<operation::Wait>(&request).await?)
}

/// The VM of an operation that succeeded.
fn succeeded(operation: Operation, what: &str) -> Result<VmId, StepError> {
    if operation.state == OperationState::Succeeded {
        let result = operation.result.unwrap_or_default();
        let result: VmResult = serde_json::from_value(result).map_err(|error| {
            StepError::permanent(ApiError::internal(format!("the VM's id cannot be read: {error}")))
        })?;
        return Ok(result.vm_id);
    }
    let mut error = operation.error.unwrap_or_else(|| ApiError::internal("it failed without saying why"));
    if error.code == ErrorCode::Cancelled {
        // Not this operation was cancelled but one that it needs.
        error.code = ErrorCode::Aborted;
    }
    error.message = format!("the VM of the build cannot be {what}: {}", error.message);
    Err(StepError::permanent(error))
}

//! The **children** of a build: an `image.build_step` for each step whose result is not known, found again by its key.

use std::time::Duration;

use bus::BusError;
use contract::{
    ApiError, ErrorCode, ImageId, OperationId, deadline,
    operation::{Operation, OperationState, Progress},
    subject,
};
use futures::StreamExt;
use operations::{Context, Kind, NewOperation, StepError};
use runtime::telemetry;
use serde_json::{Value, json};

use super::{
    BuildOrder,
    step::{BuildStep, StepOrder},
};
use crate::db::{build_cache::Hit, child::child_find};

/// The key of a step's child.
fn key(build: OperationId, step: usize) -> String {
    format!("{build}/{step}")
}

/// The child of a step, if there is one.
///
/// # Errors
/// The database could not.
pub async fn find(cx: &Context, step: usize) -> Result<Option<OperationId>, StepError> {
    let client = cx.store().client().await?;
    Ok(child_find(&client, BuildStep::NAME, &key(cx.operation(), step)).await?)
}

/// Has a step run.
///
/// # Errors
/// The database could not.
pub async fn begin(cx: &Context, order: &BuildOrder, step: usize, base: &Hit, cache: &str) -> Result<(), StepError> {
    let build = &order.build;
    let limit = Duration::from_secs(build.script_seconds);
    let request = StepOrder {
        image_id: ImageId::new(),
        build: cx.operation(),
        name: build.name.clone(),
        number: step,
        of: build.steps.len(),
        key: cache.to_owned(),
        base: base.clone(),
        step: build.steps[step].clone(),
        cpus: build.cpus,
        memory: build.memory,
        disk: build.disk,
        network: build.network,
        script_seconds: build.script_seconds,
        no_cache: build.no_cache,
    };
    let new = NewOperation {
        id: OperationId::new(),
        kind: BuildStep::NAME,
        resource: BuildStep::resource(cache),
        request: json!(request),
        // It may wait for another build of the same to fail, and has its own time then.
        deadline: (limit + deadline::BUILD_STEP) * 2,
        request_key: Some(key(cx.operation(), step)),
        request_digest: String::new(),
        traceparent: telemetry::current_traceparent(),
    };
    let client = cx.store().client().await?;
    operations::submit(&client, &new).await.map(drop)?;
    drop(client);
    cx.bus().notify(subject::wake(BuildStep::NAME)).await;
    cx.bus().notify(subject::WAKE_RELAY.to_owned()).await;
    Ok(())
}

/// Waits for a step's child and shows what it does; the image it gave.
///
/// # Errors
/// It failed, or this build was cancelled.
pub async fn ended(cx: &Context, step: usize, of: usize) -> Result<Hit, StepError> {
    let missing =
        || StepError::permanent(ApiError::internal(format!("step {} of this build was not accepted", step + 1)));
    let id = find(cx, step).await?.ok_or_else(missing)?;
    let mut changes = watch(cx, id).await?;
    loop {
        cx.checkpoint()?;
        let child = operations::get(cx.store(), id).await?;
        match child.state {
            OperationState::Succeeded => return result(&child),
            OperationState::Failed | OperationState::Cancelled => return Err(failure(child, step)),
            OperationState::Queued | OperationState::Running => {}
        }
        let phase = match child.state {
            OperationState::Queued if child.waits_for.is_some() => "waiting for another build of the same",
            _ => child.phase.as_str(),
        };
        let progress = child.progress.unwrap_or(Progress { done: 0, total: 0 });
        cx.progress(&format!("step {} of {of}: {phase}", step + 1), progress).await;
        changed(cx, &mut changes).await;
    }
}

fn result(child: &Operation) -> Result<Hit, StepError> {
    let result = child.result.clone().unwrap_or(Value::Null);
    serde_json::from_value(result).map_err(|error| {
        StepError::permanent(ApiError::internal(format!("the result of step {} cannot be read: {error}", child.id)))
    })
}

/// A child's failure as the build's.
fn failure(child: Operation, step: usize) -> StepError {
    let unsaid = || ApiError::internal("it failed without saying why");
    let mut error = child.error.unwrap_or_else(unsaid);
    if error.code == ErrorCode::Cancelled {
        // Not this operation was cancelled but one that it needs.
        error.code = ErrorCode::Aborted;
    }
    let mut details = match error.details.take() {
        Some(Value::Object(details)) => details,
        Some(other) => serde_json::Map::from_iter([("cause".to_owned(), other)]),
        None => serde_json::Map::new(),
    };
    details.insert("step".to_owned(), json!(step + 1));
    details.insert("step_operation_id".to_owned(), json!(child.id));
    error.message = format!("step {}: {}", step + 1, error.message);
    error.details = Some(details.into());
    // It was tried for as long as it was worth it.
    StepError::permanent(error)
}

/// Cancels the children that have not ended, and waits until all have: each undoes itself. For an undo.
///
/// # Errors
/// The lease is lost, or the database could not.
pub async fn call_off(cx: &Context, steps: usize) -> Result<(), StepError> {
    for step in 0..steps {
        let Some(id) = find(cx, step).await? else { continue };
        let mut changes = watch(cx, id).await?;
        loop {
            cx.checkpoint()?;
            let child = operations::get(cx.store(), id).await?;
            if child.state.is_final() {
                break;
            }
            if !child.cancel_requested {
                operations::cancel(cx.store(), cx.bus(), id).await?;
                continue;
            }
            changed(cx, &mut changes).await;
        }
    }
    Ok(())
}

async fn watch(cx: &Context, id: OperationId) -> Result<async_nats::Subscriber, StepError> {
    let changes = cx.bus().subscribe(subject::operation_changed(id)).await;
    changes.map_err(|error: BusError| StepError::retry(error.into()))
}

/// Until something may have changed, or a cancel is asked for. A poll finds what is lost.
async fn changed(cx: &Context, changes: &mut async_nats::Subscriber) {
    tokio::select! {
        _ = changes.next() => {}
        () = tokio::time::sleep(deadline::POLL) => {}
        () = cx.cancelled() => {}
    }
}

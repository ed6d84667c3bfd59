//! The verbs on operations, the same in every service, and the reply of slow verbs.

use std::time::Duration;

use bus::{Bus, BusError, Service};
use contract::{
    ApiError, OperationId, deadline,
    operation::{Cancel, Get, List, Operation, OperationState, Seen, Wait},
    subject,
};
use futures::StreamExt;
use serde_json::json;
use store::Store;
use tokio::time::{Instant, timeout_at};

use crate::{Submitter, record, submit};

/// Serves `warren.operation.*`. Every service does; one of them answers.
///
/// # Errors
/// The bus connection is closed.
pub async fn serve_operation_verbs(service: &Service, store: &Store, bus: &Bus) -> Result<(), BusError> {
    let db = store.clone();
    service
        .serve_shared::<Get, _>(move |_, request| {
            let db = db.clone();
            async move { record::get(&db, request.id).await }
        })
        .await?;
    let db = store.clone();
    service
        .serve_shared::<List, _>(move |_, request| {
            let db = db.clone();
            async move { record::list(&db, &request).await }
        })
        .await?;
    let (db, wire) = (store.clone(), bus.clone());
    service
        .serve_shared::<Wait, _>(move |_, request| {
            let (db, wire) = (db.clone(), wire.clone());
            async move { wait(&db, &wire, request.id, request.timeout_ms, request.changed_from.as_ref()).await }
        })
        .await?;
    let (db, wire) = (store.clone(), bus.clone());
    service
        .serve_shared::<Cancel, _>(move |_, request| {
            let (db, wire) = (db.clone(), wire.clone());
            async move { submit::cancel(&db, &wire, request.id).await }
        })
        .await
}

fn differs(operation: &Operation, seen: Option<&Seen>) -> bool {
    seen.is_some_and(|seen| {
        operation.state != seen.state || operation.phase != seen.phase || operation.progress != seen.progress
    })
}

pub(crate) async fn wait(
    store: &Store,
    bus: &Bus,
    id: OperationId,
    timeout_ms: u64,
    seen: Option<&Seen>,
) -> Result<Operation, ApiError> {
    if !(1..=deadline::WAIT_MAX_MS).contains(&timeout_ms) {
        return Err(ApiError::invalid_argument(format!(
            "timeout_ms {timeout_ms} is not within 1 to {}",
            deadline::WAIT_MAX_MS
        )));
    }
    let until = Instant::now() + Duration::from_millis(timeout_ms);
    // Subscribed before the first look, so that no change falls between them; the poll is for lost messages.
    let mut changes = bus.subscribe(subject::operation_changed(id)).await?;
    loop {
        let operation = record::get(store, id).await?;
        if operation.state.is_final() || differs(&operation, seen) || Instant::now() >= until {
            return Ok(operation);
        }
        let next = until.min(Instant::now() + deadline::POLL);
        if matches!(timeout_at(next, changes.next()).await, Ok(None)) {
            return Err(ApiError::unavailable("the connection to the bus is closed"));
        }
    }
}

/// The reply of a slow verb: the operation at once, or at its end when the request waits.
///
/// # Errors
/// A waited-for operation's own error, or `deadline_exceeded` when it has not ended in time; both with
/// `details.operation_id`.
pub async fn answer(
    submitter: &Submitter,
    operation: Operation,
    wait: bool,
    timeout_ms: u64,
) -> Result<Operation, ApiError> {
    if !wait {
        return Ok(operation);
    }
    let operation = submitter.wait(operation.id, timeout_ms, None).await?;
    match operation.state {
        OperationState::Succeeded => Ok(operation),
        OperationState::Failed | OperationState::Cancelled => Err(failure(operation)),
        OperationState::Queued | OperationState::Running => {
            let id = operation.id;
            Err(ApiError::deadline_exceeded(format!("operation {id} has not ended after {timeout_ms} ms; it goes on"))
                .hint(format!("`warren op wait {id}` waits on"))
                .details(json!({ "operation_id": id, "phase": operation.phase })))
        }
    }
}

/// A failed operation as an error reply.
fn failure(operation: Operation) -> ApiError {
    let mut error = operation.error.unwrap_or_else(|| ApiError::internal("the operation failed without saying why"));
    let mut details = match error.details.take() {
        Some(serde_json::Value::Object(details)) => details,
        Some(other) => serde_json::Map::from_iter([("cause".to_owned(), other)]),
        None => serde_json::Map::new(),
    };
    details.insert("operation_id".to_owned(), json!(operation.id));
    error.details = Some(details.into());
    error.trace_id = error.trace_id.or(operation.trace_id);
    error
}

//! Accepting and cancelling operations.

use std::time::Duration;

use contract::{ApiError, OperationId, operation::Operation, subject};
use serde_json::{Value, json};
use store::{GenericClient, Store, StoreError, Transaction, outbox};
use tokio_postgres::Row;

use crate::record::get_in;

/// An operation to be accepted.
#[derive(Clone, Debug)]
pub struct NewOperation<'a> {
    /// Its id, minted before anything happens.
    pub id: OperationId,
    /// Its kind's name.
    pub kind: &'a str,
    /// What it excludes others from.
    pub resource: String,
    /// The request it carries out.
    pub request: Value,
    /// How long it may take in all, from now.
    pub deadline: Duration,
    /// The caller's idempotency key.
    pub request_key: Option<String>,
    /// What tells the same request from another one with the same key.
    pub request_digest: String,
    /// The trace it belongs to.
    pub traceparent: Option<String>,
}

/// What accepting did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// A new operation.
    New(OperationId),
    /// The one accepted earlier with the same key.
    Replayed(OperationId),
}

impl Submitted {
    /// The operation either way.
    pub fn id(self) -> OperationId {
        match self {
            Self::New(id) | Self::Replayed(id) => id,
        }
    }
}

/// Accepts an operation; works inside a caller's transaction too.
///
/// # Errors
/// `invalid_argument` when the key was used with another request, or the request holds a NUL, which no row can; or the database is
/// not there.
pub async fn submit(client: &impl GenericClient, new: &NewOperation<'_>) -> Result<Submitted, ApiError> {
    if nul(&new.request) || new.request_key.as_deref().is_some_and(|key| key.contains('\0')) {
        return Err(ApiError::invalid_argument("the request holds a NUL character (U+0000)"));
    }
    // The row and its event in one statement, so that neither is ever without the other, in a transaction or not.
    let insert = client
        .prepare_cached(
            "with accepted as ( \
                insert into operations.operation \
                (id, kind, resource, request, request_key, request_digest, traceparent, deadline_at) \
                values ($1, $2, $3, $4, $5, $6, $7, now() + $8 * interval '1 second') \
                on conflict (kind, request_key) where request_key is not null do nothing \
                returning id, kind, resource, state, traceparent) \
             insert into operations.outbox (subject, data, traceparent) \
             select $9, jsonb_build_object('kind', kind, 'resource', resource, 'state', state), traceparent \
             from accepted",
        )
        .await
        .map_err(StoreError::from)?;
    let accepted = client
        .execute(
            &insert,
            &[
                &new.id.0,
                &new.kind,
                &new.resource,
                &new.request,
                &new.request_key,
                &new.request_digest,
                &new.traceparent,
                &new.deadline.as_secs_f64(),
                &subject::event("operation", new.id, "queued"),
            ],
        )
        .await
        .map_err(StoreError::from)?;
    if accepted == 1 {
        return Ok(Submitted::New(new.id));
    }
    replayed(client, new).await
}

/// Accepts an operation that no worker takes before [`release`]. From now on it has its place in its resource's queue: what is
/// submitted later waits behind it. Works inside a caller's transaction only, so that no worker sees it before it is held.
///
/// # Errors
/// As [`submit`].
pub async fn submit_held(txn: &Transaction<'_>, new: &NewOperation<'_>) -> Result<Submitted, ApiError> {
    let submitted = submit(txn, new).await?;
    if let Submitted::New(id) = submitted {
        let hold = "update operations.operation set held = true, phase = 'held' where id = $1";
        let statement = txn.prepare_cached(hold).await.map_err(StoreError::from)?;
        txn.execute(&statement, &[&id.0]).await.map_err(StoreError::from)?;
    }
    Ok(submitted)
}

/// Lets workers take a held operation, whose time begins now; one that is not held any more stays as it is.
///
/// # Errors
/// The database is not there.
pub async fn release(client: &impl GenericClient, id: OperationId, deadline: Duration) -> Result<(), ApiError> {
    let query = "update operations.operation set held = false, phase = '', deadline_at = now() + $2 * interval '1 second' \
         where id = $1 and held and state = 'queued'";
    let statement = client.prepare_cached(query).await.map_err(StoreError::from)?;
    client.execute(&statement, &[&id.0, &deadline.as_secs_f64()]).await.map_err(StoreError::from)?;
    Ok(())
}

fn nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(nul),
        Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('\0') || nul(value)),
        _ => false,
    }
}

/// The operation of that kind that was accepted with this key, if one was: its caller has its answer whatever became of the world since.
///
/// # Errors
/// As [`submit`].
pub async fn replay(
    client: &impl GenericClient,
    kind: &str,
    request_key: Option<&str>,
    request_digest: &str,
) -> Result<Option<OperationId>, ApiError> {
    let Some(key) = request_key else { return Ok(None) };
    let query = "select id, request_digest from operations.operation where kind = $1 and request_key = $2";
    let statement = client.prepare_cached(query).await.map_err(StoreError::from)?;
    let row = client.query_opt(&statement, &[&kind, &key]).await.map_err(StoreError::from)?;
    row.map(|row| same_request(&row, request_digest)).transpose()
}

/// The operation of the row, if it is of the same request.
fn same_request(row: &Row, request_digest: &str) -> Result<OperationId, ApiError> {
    if row.get::<_, String>("request_digest") != request_digest {
        return Err(ApiError::invalid_argument("this request id was used before with another request")
            .hint("use a fresh Warren-Request-Id for every new request"));
    }
    Ok(OperationId(row.get("id")))
}

async fn replayed(client: &impl GenericClient, new: &NewOperation<'_>) -> Result<Submitted, ApiError> {
    let earlier = replay(client, new.kind, new.request_key.as_deref(), &new.request_digest).await?;
    // It was purged between the two statements.
    let purged = || {
        ApiError::aborted("the request id was used by an operation that was just purged")
            .hint("ask again with a fresh request id")
    };
    earlier.map(Submitted::Replayed).ok_or_else(purged)
}

/// Ends an operation, accepted in this transaction, that was carried out in it. Its state change, the operation and both events are
/// there together or not at all.
///
/// # Errors
/// The database is not there.
pub async fn finish_in_txn(txn: &Transaction<'_>, id: OperationId, result: &Value) -> Result<(), ApiError> {
    let query = "update operations.operation set state = 'succeeded', phase = 'done', result = $2, started_at = now(), finished_at = now() \
         where id = $1 and state = 'queued' returning kind, resource";
    let statement = txn.prepare_cached(query).await.map_err(StoreError::from)?;
    let row = txn.query_one(&statement, &[&id.0, result]).await.map_err(StoreError::from)?;
    let (kind, resource): (String, String) = (row.get(0), row.get(1));
    let event = json!({ "kind": kind, "resource": resource, "state": "succeeded", "error": null, "undo_owed": false });
    outbox::push(txn, &subject::event("operation", id, "succeeded"), &event).await?;
    Ok(())
}

/// Cancels an operation: at once while it is queued, at its next step boundary while it runs. One that has
/// ended stays as it is.
///
/// # Errors
/// `not_found`, or the database is not there.
pub async fn cancel(store: &Store, bus: &bus::Bus, id: OperationId) -> Result<Operation, ApiError> {
    let mut client = store.client().await?;
    let transaction = client.transaction().await.map_err(StoreError::from)?;
    let error = serde_json::to_value(ApiError::cancelled("the operation was cancelled before it began"))
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let statement = transaction
        .prepare_cached(
            "update operations.operation set cancel_requested = true, \
                state = case when state = 'queued' then 'cancelled' else state end, \
                finished_at = case when state = 'queued' then now() end, \
                error = case when state = 'queued' then $2 else error end \
             where id = $1 and state in ('queued', 'running') returning kind, resource, state",
        )
        .await
        .map_err(StoreError::from)?;
    let row = transaction.query_opt(&statement, &[&id.0, &error]).await.map_err(StoreError::from)?;
    if let Some(row) = row {
        let (kind, resource, state): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let what = if state == "cancelled" { "cancelled" } else { "cancel_requested" };
        let event = json!({ "kind": kind, "resource": resource, "state": state });
        outbox::push(&transaction, &subject::event("operation", id, what), &event).await?;
    }
    let operation = get_in(&transaction, id).await?;
    transaction.commit().await.map_err(StoreError::committing)?;
    bus.notify(subject::operation_cancel(id)).await;
    bus.notify(subject::operation_changed(id)).await;
    bus.notify(subject::WAKE_RELAY.to_owned()).await;
    Ok(operation)
}

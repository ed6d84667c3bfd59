//! Operations as rows, and as clients see them.

use contract::{
    ApiError, OperationId,
    operation::{ListRequest, Operation, OperationList, StepRecord},
};
use serde_json::{Value, json};
use store::{GenericClient, Store, StoreError};
use tokio_postgres::Row;

/// The columns [`from_row`] reads; the operation is `o`.
const COLUMNS: &str = "o.id, o.kind, o.resource, o.state, o.phase, o.progress, o.request, o.result, o.error, \
    o.cancel_requested, o.worker, o.epoch, o.attempts, o.traceparent, o.created_at, o.started_at, o.finished_at, \
    case when o.state = 'queued' then (select b.id from operations.operation b where b.resource = o.resource \
        and b.id <> o.id and b.state in ('running', 'queued') order by b.state = 'running' desc, b.id limit 1) \
    end as waits_for, \
    coalesce((select jsonb_agg(jsonb_build_object('name', s.name, 'state', s.state, \
        'at', to_char(s.at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')) order by s.seq) \
        from operations.step s where s.operation_id = o.id), '[]') as steps";

/// How many operations one page holds at the most.
const PAGE_MAX: u32 = 500;

fn from_row(row: &Row) -> Result<Operation, ApiError> {
    let damaged = |what: &str| ApiError::internal(format!("an operation's row has an unreadable {what}"));
    let json = |column: &str| row.get::<_, Option<serde_json::Value>>(column);
    let state: String = row.get("state");
    let steps: Vec<StepRecord> = serde_json::from_value(row.get("steps")).map_err(|_| damaged("list of steps"))?;
    let traceparent: Option<String> = row.get("traceparent");
    let progress = json("progress").map(serde_json::from_value).transpose().map_err(|_| damaged("progress"))?;
    let error = json("error").map(serde_json::from_value).transpose().map_err(|_| damaged("error"))?;
    let mut request = row.get("request");
    shorten(&mut request);
    Ok(Operation {
        id: OperationId(row.get("id")),
        kind: row.get("kind"),
        resource: row.get("resource"),
        state: state.parse().map_err(|_| damaged("state"))?,
        phase: row.get("phase"),
        progress,
        request,
        result: json("result"),
        error,
        steps,
        cancel_requested: row.get("cancel_requested"),
        worker: row.get("worker"),
        epoch: row.get("epoch"),
        attempts: row.get("attempts"),
        waits_for: row.get::<_, Option<uuid::Uuid>>("waits_for").map(OperationId),
        trace_id: traceparent.as_deref().and_then(runtime::telemetry::trace_id).map(str::to_owned),
        created_at: row.get("created_at"),
        started_at: row.get("started_at"),
        finished_at: row.get("finished_at"),
    })
}

/// The longest text of a request that is shown whole, in bytes: scripts are not what an operation is looked at for.
const TEXT_MAX: usize = 1024;
/// The longest request, and the longest result, that is shown in a list, in bytes of JSON: a page is one message.
const LISTED_MAX: usize = 4096;

/// Shortens long texts in a request.
fn shorten(value: &mut Value) {
    match value {
        Value::String(text) if text.len() > TEXT_MAX => *text = format!("({} bytes)", text.len()),
        Value::Array(values) => values.iter_mut().for_each(shorten),
        Value::Object(fields) => fields.values_mut().for_each(shorten),
        _ => {}
    }
}

/// An operation as a list shows it.
fn listed(row: &Row) -> Result<Operation, ApiError> {
    let mut operation = from_row(row)?;
    for value in [Some(&mut operation.request), operation.result.as_mut()].into_iter().flatten() {
        let bytes = value.to_string().len();
        if bytes > LISTED_MAX {
            *value = json!({ "omitted_bytes": bytes });
        }
    }
    Ok(operation)
}

/// One operation.
///
/// # Errors
/// `not_found`, or the database is not there.
pub async fn get(store: &Store, id: OperationId) -> Result<Operation, ApiError> {
    let client = store.client().await?;
    get_in(&client, id).await
}

/// As [`get`], in a transaction too.
///
/// # Errors
/// As [`get`].
pub async fn get_in(client: &impl GenericClient, id: OperationId) -> Result<Operation, ApiError> {
    let query = format!("select {COLUMNS} from operations.operation o where o.id = $1");
    let statement = client.prepare_cached(&query).await.map_err(StoreError::from)?;
    match client.query_opt(&statement, &[&id.0]).await.map_err(StoreError::from)? {
        Some(row) => from_row(&row),
        None => Err(ApiError::not_found(format!("no operation {id}")).hint("`warren op ls` lists them")),
    }
}

/// A page of operations, newest first.
///
/// # Errors
/// The limit is out of range, or the database is not there.
pub async fn list(store: &Store, request: &ListRequest) -> Result<OperationList, ApiError> {
    if !(1..=PAGE_MAX).contains(&request.limit) {
        return Err(ApiError::invalid_argument(format!("limit {} is not within 1 to {PAGE_MAX}", request.limit)));
    }
    let query = format!(
        "select {COLUMNS} from operations.operation o \
         where ($1::text is null or o.state = $1) and ($2::text is null or o.kind = $2) \
           and ($3::text is null or o.resource = $3) and ($4::uuid is null or o.id < $4) \
         order by o.id desc limit $5"
    );
    let client = store.client().await?;
    let statement = client.prepare_cached(&query).await.map_err(StoreError::from)?;
    let state = request.state.map(contract::operation::OperationState::as_str);
    let before = request.before.map(|id| id.0);
    let limit = i64::from(request.limit);
    let rows = client
        .query(&statement, &[&state, &request.kind, &request.resource, &before, &(limit + 1)])
        .await
        .map_err(StoreError::from)?;
    let more = rows.len() > request.limit as usize;
    let operations = rows.iter().take(request.limit as usize).map(listed).collect::<Result<_, _>>()?;
    Ok(OperationList { operations, more })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_told_by_their_length() {
        let mut request = json!({ "name": "web", "vms": [{ "user_data": "x".repeat(5000), "cpus": 1 }] });
        shorten(&mut request);
        assert_eq!(request, json!({ "name": "web", "vms": [{ "user_data": "(5000 bytes)", "cpus": 1 }] }));
    }
}

//! The claim: one short statement, then a lease. Every write of a worker names its claim and changes nothing
//! when the claim is not its own any more.

use contract::{ApiError, OperationId, deadline, operation::Progress, subject};
use serde_json::{Value, json};
use store::{Store, StoreError, outbox};
use time::OffsetDateTime;
use tokio_postgres::Row;
use tokio_util::sync::CancellationToken;

/// An operation in a worker's hands.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub id: OperationId,
    pub kind: String,
    pub resource: String,
    pub epoch: i64,
    pub worker: String,
    pub request: Value,
    pub journal: Option<Value>,
    pub traceparent: Option<String>,
    pub deadline_at: OffsetDateTime,
    pub cancel_requested: bool,
    /// The undo has begun: never go forward again.
    pub undoing: bool,
    /// The operation has ended; only what its undo owes is to be done.
    pub owed: bool,
    pub error: Option<ApiError>,
    /// Recorded steps that are not undone, in order.
    pub done: Vec<String>,
}

/// Whether a fenced write took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fenced {
    Written,
    /// Another worker has the operation.
    LeaseLost,
}

const RETURNING: &str = "o.id, o.kind, o.resource, o.epoch, o.worker, o.request, o.journal, o.traceparent, \
    o.deadline_at, o.cancel_requested, o.undoing, o.undo_owed, o.error, \
    array(select s.name from operations.step s where s.operation_id = o.id and s.state <> 'undone' order by s.seq) as done";

fn seconds(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64()
}

fn from_row(row: &Row) -> Claim {
    Claim {
        id: OperationId(row.get("id")),
        kind: row.get("kind"),
        resource: row.get("resource"),
        epoch: row.get("epoch"),
        worker: row.get("worker"),
        request: row.get("request"),
        journal: row.get("journal"),
        traceparent: row.get("traceparent"),
        deadline_at: row.get("deadline_at"),
        cancel_requested: row.get("cancel_requested"),
        undoing: row.get("undoing"),
        owed: row.get("undo_owed"),
        error: row.get::<_, Option<Value>>("error").and_then(|error| serde_json::from_value(error).ok()),
        done: row.get("done"),
    }
}

/// Takes the oldest operation of these kinds whose resource is free, or whose worker is silent.
pub(crate) async fn next(store: &Store, kinds: &[String], worker: &str) -> Result<Option<Claim>, StoreError> {
    let query = format!(
        "with candidate as ( \
            select o.id, o.resource from operations.operation o \
            where o.kind = any($1) and ( \
                (o.state = 'running' and o.lease_until < now()) \
                or (o.state = 'queued' and not o.held and not exists ( \
                    select 1 from operations.operation b where b.resource = o.resource \
                    and (b.state = 'running' or (b.state = 'queued' and b.id < o.id))))) \
            order by o.id limit 1 for update skip locked), \
         fresh as ({EPOCH}), \
         claimed as ( \
            update operations.operation o set state = 'running', worker = $2, epoch = fresh.epoch, \
                lease_until = now() + $3 * interval '1 second', attempts = o.attempts + 1, \
                started_at = coalesce(o.started_at, now()) \
            from candidate, fresh where o.id = candidate.id returning o.*), \
         told as ( \
            insert into operations.outbox (subject, data, traceparent) \
            select 'warren.event.operation.' || id || '.running', jsonb_build_object('kind', kind, 'resource', resource, \
                'state', state, 'phase', phase, 'worker', worker, 'epoch', epoch, 'attempts', attempts), traceparent \
            from claimed) \
         select {RETURNING} from claimed o"
    );
    take(store, &query, kinds, worker).await
}

/// Takes an ended operation whose undo still owes something and whose turn has come.
pub(crate) async fn next_owed(store: &Store, kinds: &[String], worker: &str) -> Result<Option<Claim>, StoreError> {
    let query = format!(
        "with candidate as ( \
            select o.id, o.resource from operations.operation o \
            where o.undo_owed and o.kind = any($1) and o.lease_until < now() and not exists ( \
                select 1 from operations.operation b where b.resource = o.resource and b.state = 'running') \
            order by o.lease_until limit 1 for update skip locked), \
         fresh as ({EPOCH}), \
         claimed as ( \
            update operations.operation o set worker = $2, epoch = fresh.epoch, \
                lease_until = now() + $3 * interval '1 second', attempts = o.attempts + 1 \
            from candidate, fresh where o.id = candidate.id returning o.*) \
         select {RETURNING} from claimed o"
    );
    take(store, &query, kinds, worker).await
}

/// Epochs grow with every claim on a resource, whichever operation claims.
const EPOCH: &str = "insert into operations.resource_epoch as e (resource, epoch) select resource, 1 from candidate \
    on conflict (resource) do update set epoch = e.epoch + 1 returning epoch";

async fn take(store: &Store, query: &str, kinds: &[String], worker: &str) -> Result<Option<Claim>, StoreError> {
    let client = store.client().await?;
    let statement = client.prepare_cached(query).await?;
    match client.query_opt(&statement, &[&kinds, &worker, &seconds(deadline::LEASE)]).await {
        Ok(row) => Ok(row.as_ref().map(from_row)),
        // The index of running operations decided for another worker.
        Err(error) if store::constraint(&error) == Some("operation_running") => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Claim {
    /// Renews the lease; gives whether a cancel was asked for, or nothing when the claim is lost.
    pub(crate) async fn renew(&self, store: &Store) -> Result<Option<bool>, StoreError> {
        let client = store.client().await?;
        let statement = client
            .prepare_cached(
                "update operations.operation set lease_until = now() + $4 * interval '1 second' \
                 where id = $1 and worker = $2 and epoch = $3 and (state = 'running' or undo_owed) \
                 returning cancel_requested",
            )
            .await?;
        let lease = seconds(deadline::LEASE);
        let row = client.query_opt(&statement, &[&self.id.0, &self.worker, &self.epoch, &lease]).await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Shows which step is being done.
    pub(crate) async fn set_phase(&self, store: &Store, phase: &str) -> Result<Fenced, StoreError> {
        let query = "update operations.operation set phase = $4, progress = null \
             where id = $1 and worker = $2 and epoch = $3 and (state = 'running' or undo_owed)";
        self.fenced(store, query, &[&self.id.0, &self.worker, &self.epoch, &phase]).await
    }

    /// Shows how far the step is.
    pub(crate) async fn set_progress(
        &self,
        store: &Store,
        phase: &str,
        progress: Progress,
    ) -> Result<Fenced, StoreError> {
        let progress = json!(progress);
        let query = "update operations.operation set phase = $4, progress = $5 \
             where id = $1 and worker = $2 and epoch = $3 and state = 'running'";
        self.fenced(store, query, &[&self.id.0, &self.worker, &self.epoch, &phase, &progress]).await
    }

    /// Saves the undo's reason before it begins, and that this step is to be undone although it was not recorded.
    pub(crate) async fn begin_undo(
        &self,
        store: &Store,
        step: Option<(i32, &str)>,
        error: &ApiError,
    ) -> Result<Fenced, StoreError> {
        let mut client = store.client().await?;
        let transaction = client.transaction().await?;
        let changed = transaction
            .execute(
                "update operations.operation set undoing = true, error = $4, phase = 'undo', progress = null \
                 where id = $1 and worker = $2 and epoch = $3 and state = 'running'",
                &[&self.id.0, &self.worker, &self.epoch, &json!(error.clone().fit())],
            )
            .await?;
        if changed == 0 {
            return Ok(Fenced::LeaseLost);
        }
        if let Some((seq, name)) = step {
            transaction
                .execute(
                    "insert into operations.step (operation_id, seq, name, state) values ($1, $2, $3, 'owed') \
                     on conflict (operation_id, name) do nothing",
                    &[&self.id.0, &seq, &name],
                )
                .await?;
        }
        transaction.commit().await.map_err(StoreError::committing)?;
        Ok(Fenced::Written)
    }

    /// Records a step with the journal as it is after it. A cancel asked for by then is seen here, so that the next
    /// step is not begun whatever became of the message that told of it.
    pub(crate) async fn record_step(
        &self,
        store: &Store,
        seq: i32,
        name: &str,
        next: &str,
        journal: &Value,
        cancel: &CancellationToken,
    ) -> Result<Fenced, StoreError> {
        let event =
            json!({ "kind": self.kind, "resource": self.resource, "state": "running", "phase": next, "done": name });
        let query = "with mine as ( \
                update operations.operation set journal = $6, phase = $7, progress = null \
                where id = $1 and worker = $2 and epoch = $3 and state = 'running' \
                returning id, traceparent, cancel_requested), \
             step as ( \
                insert into operations.step (operation_id, seq, name, state) select id, $4, $5, 'done' from mine \
                on conflict (operation_id, name) do update set state = 'done', at = clock_timestamp()), \
             told as ( \
                insert into operations.outbox (subject, data, traceparent) \
                select 'warren.event.operation.' || id || '.phase', $8, traceparent from mine) \
             select cancel_requested from mine";
        let client = store.client().await?;
        let statement = client.prepare_cached(query).await?;
        let row = client
            .query_opt(&statement, &[&self.id.0, &self.worker, &self.epoch, &seq, &name, journal, &next, &event])
            .await?;
        let Some(row) = row else { return Ok(Fenced::LeaseLost) };
        if row.get(0) {
            cancel.cancel();
        }
        Ok(Fenced::Written)
    }

    /// Records that a step was undone, or is owed.
    pub(crate) async fn mark_step(&self, store: &Store, name: &str, state: &str) -> Result<Fenced, StoreError> {
        let query = "update operations.step set state = $5, at = clock_timestamp() where operation_id = $1 and name = $4 \
             and exists (select 1 from operations.operation where id = $1 and worker = $2 and epoch = $3)";
        self.fenced(store, query, &[&self.id.0, &self.worker, &self.epoch, &name, &state]).await
    }

    /// Records that a recorded step's undo is owed; one that is undone already, or was never recorded, stays as it is.
    pub(crate) async fn owe_step(&self, store: &Store, name: &str) -> Result<Fenced, StoreError> {
        let query = "update operations.step set state = 'owed' where operation_id = $1 and name = $4 and state = 'done' \
             and exists (select 1 from operations.operation where id = $1 and worker = $2 and epoch = $3)";
        self.fenced(store, query, &[&self.id.0, &self.worker, &self.epoch, &name]).await?;
        Ok(Fenced::Written)
    }

    /// Ends the operation.
    pub(crate) async fn finish(&self, store: &Store, end: &End) -> Result<Fenced, StoreError> {
        let (state, result, error, owed) = match end {
            End::Succeeded(result) => ("succeeded", Some(result), None, false),
            End::Failed { error, owed } => ("failed", None, Some(json!(error.clone().fit())), *owed),
            End::Cancelled { error, owed } => ("cancelled", None, Some(json!(error.clone().fit())), *owed),
        };
        let mut client = store.client().await?;
        let transaction = client.transaction().await?;
        let changed = transaction
            .execute(
                "update operations.operation set state = $4, result = $5, error = coalesce($6, error), undo_owed = $7, \
                    progress = null, worker = null, finished_at = coalesce(finished_at, now()), \
                    phase = case when $4 = 'succeeded' then 'done' else phase end, \
                    lease_until = now() + $8 * interval '1 second' \
                 where id = $1 and worker = $2 and epoch = $3",
                &[&self.id.0, &self.worker, &self.epoch, &state, &result, &error, &owed, &seconds(OWED_PAUSE)],
            )
            .await?;
        if changed == 0 {
            return Ok(Fenced::LeaseLost);
        }
        let event =
            json!({ "kind": self.kind, "resource": self.resource, "state": state, "error": error, "undo_owed": owed });
        outbox::push(&transaction, &subject::event("operation", self.id, state), &event).await?;
        transaction.commit().await.map_err(StoreError::committing)?;
        Ok(Fenced::Written)
    }

    async fn fenced(
        &self,
        store: &Store,
        query: &str,
        parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Fenced, StoreError> {
        let client = store.client().await?;
        let statement = client.prepare_cached(query).await?;
        let changed = client.execute(&statement, parameters).await?;
        Ok(if changed == 0 { Fenced::LeaseLost } else { Fenced::Written })
    }
}

/// How long an owed undo rests before it is tried again: a host that comes back is cleaned within this.
const OWED_PAUSE: std::time::Duration = std::time::Duration::from_secs(5);

/// How an operation ends.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Succeeded(Value),
    Failed { error: ApiError, owed: bool },
    Cancelled { error: ApiError, owed: bool },
}

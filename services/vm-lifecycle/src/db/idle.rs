//! Which VMs are **idle**: what hosts tell of it, and who is due for what is to happen then. The clock is the database's.

use std::collections::HashSet;

use contract::{
    HostId, VmId, VmName,
    idle::{IdleAction, IdleLimit, Idleness},
    subject,
};
use serde_json::json;
use store::{GenericClient, Store, StoreError, outbox};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{number, parsed};

/// How many are taken at once, so that transactions stay short.
const BATCH: i64 = 64;
/// How long a VM rests after what was done to it had no success, in seconds.
const PAUSE: f64 = 60.0;
/// How far a VM's time of use has to move for its row to be written, in milliseconds: rows of VMs that idle are not.
const MOVED_MS: i64 = 1_000;

/// A VM that was idle for as long as it may be.
#[derive(Clone, Debug)]
pub struct Due {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// How long that is, and what is to be done.
    pub limit: IdleLimit,
}

/// The limit in a row's columns `idle_seconds` and `idle_action`.
pub(super) fn limit(row: &Row) -> Result<Option<IdleLimit>, StoreError> {
    if row.try_get::<_, Option<i64>>("idle_seconds")?.is_none() {
        return Ok(None);
    }
    let action: IdleAction = parsed(row, "idle_action")?;
    Ok(Some(IdleLimit { seconds: number(row, "idle_seconds")?.into(), action }))
}

/// Notes how long a host's running VMs are idle, and up to when it told; the VMs of it that have a limit.
///
/// A time of use never goes back: a report that was made before a resume changes nothing after it.
///
/// # Errors
/// The database could not; a repeat finds it as it is then.
pub async fn activity_apply(store: &Store, host: &HostId, told: &[Idleness]) -> Result<Vec<VmId>, StoreError> {
    let client = store.client().await?;
    let running = client
        .prepare_cached("select id from vm.vm where host_id = $1 and idle_seconds is not null and state = 'running'")
        .await?;
    let rows = client.query(&running, &[&host.as_str()]).await?;
    let limited: Vec<Uuid> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let mut told = told.to_vec();
    // What is not known is taken for use.
    told.extend(
        limited
            .iter()
            .filter(|id| !told.iter().any(|one| one.vm.0 == **id))
            .map(|id| Idleness { vm: VmId(*id), idle_ms: 0 })
            .collect::<Vec<_>>(),
    );
    let ids: Vec<Uuid> = told.iter().map(|one| one.vm.0).collect();
    let idle: Vec<i64> = told.iter().map(|one| i64::try_from(one.idle_ms).unwrap_or(i64::MAX)).collect();
    // Rows that somebody works on are left out: this statement never waits while it holds others.
    let statement = client
        .prepare_cached(
            "with t as (select d.id, clock_timestamp() - least(s.idle_ms, 4000000000000) * interval '1 ms' as at \
                   from unnest($2::uuid[], $3::bigint[]) s (id, idle_ms) join vm.vm d on d.id = s.id \
                   where d.host_id = $1 and d.state = 'running' for update of d skip locked), \
             moved as (update vm.vm v set active_at = t.at from t \
                   where v.id = t.id and (v.active_at is null or v.active_at < t.at - $4::bigint * interval '1 ms')) \
             select id from t",
        )
        .await?;
    let rows = client.query(&statement, &[&host.as_str(), &ids, &idle, &MOVED_MS]).await?;
    let heard: HashSet<Uuid> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    // While a limited VM was left out, nobody is idle up to now: it may be the one that has just been used.
    if limited.iter().all(|id| heard.contains(id)) {
        let told = client.prepare_cached("update vm.host set activity_at = clock_timestamp() where id = $1").await?;
        client.execute(&told, &[&host.as_str()]).await?;
    }
    Ok(limited.into_iter().map(VmId).collect())
}

/// Takes the VMs that have been idle for as long as they may be and that nobody works on, and tells of it; they are due no more
/// once the transaction commits. What their host has not told of yet does not count.
///
/// # Errors
/// The database could not.
pub async fn due_for_idleness(txn: &impl GenericClient) -> Result<Vec<Due>, StoreError> {
    let statement = txn
        .prepare_cached(
            "update vm.vm v set idle_acted_at = clock_timestamp() where v.id in ( \
                select d.id from vm.vm d join vm.host h on h.id = d.host_id \
                where d.idle_seconds is not null and d.state = 'running' \
                and d.active_at + make_interval(secs => d.idle_seconds) <= h.activity_at \
                and (d.idle_acted_at is null or d.idle_acted_at < clock_timestamp() - make_interval(secs => $2)) \
                and not exists (select from operations.operation o where o.resource = 'vm:' || d.id \
                                and (o.state in ('queued', 'running') or o.undo_owed)) \
                order by d.active_at limit $1 for update of d skip locked) \
             returning v.id, v.name, v.host_id, v.idle_seconds, v.idle_action",
        )
        .await?;
    let mut due = Vec::new();
    for row in txn.query(&statement, &[&BATCH, &PAUSE]).await? {
        let vm = VmId(row.try_get("id")?);
        let Some(limit) = limit(&row)? else { continue };
        let event = json!({
            "name": row.try_get::<_, String>("name")?,
            "host": row.try_get::<_, String>("host_id")?,
            "idle_seconds": limit.seconds,
            "action": limit.action,
        });
        outbox::push(txn, &subject::event("vm", vm, "idle"), &event).await?;
        due.push(Due { vm, name: parsed(&row, "name")?, limit });
    }
    Ok(due)
}

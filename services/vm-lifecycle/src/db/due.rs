//! Which VMs are **due**: to be started again, or to be deleted. The clock is the database's.

use contract::{VmId, VmName};
use store::{GenericClient, StoreError};
use tokio_postgres::Row;

use super::parsed;

/// A VM that is due.
#[derive(Clone, Debug)]
pub struct Due {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
}

/// How many are taken at once, so that transactions stay short.
const BATCH: i64 = 64;
/// How long a delete that failed rests before the next attempt, in seconds.
const DELETE_PAUSE: f64 = 60.0;

fn read(rows: &[Row]) -> Result<Vec<Due>, StoreError> {
    rows.iter().map(|row| Ok(Due { vm: VmId(row.try_get("id")?), name: parsed(row, "name")? })).collect()
}

/// Takes the VMs whose pause before a restart is over; they are due no more once the transaction commits.
///
/// # Errors
/// The database could not.
pub async fn due_for_restart(txn: &impl GenericClient) -> Result<Vec<Due>, StoreError> {
    let statement = txn
        .prepare_cached(
            "update vm.vm v set restart_at = null, restarts = v.restarts + 1 where v.id in ( \
                select d.id from vm.vm d where d.restart_at <= clock_timestamp() and d.state in ('stopped', 'failed') \
                order by d.restart_at limit $1 for update skip locked) \
             returning v.id, v.name",
        )
        .await?;
    read(&txn.query(&statement, &[&BATCH]).await?)
}

/// The VMs whose time is up and that nobody deletes yet; locked, so that no other keeper takes them too.
///
/// # Errors
/// The database could not.
pub async fn due_for_delete(txn: &impl GenericClient) -> Result<Vec<Due>, StoreError> {
    let statement = txn
        .prepare_cached(
            "select v.id, v.name from vm.vm v where v.expires_at <= clock_timestamp() and not exists ( \
                select from operations.operation o where o.resource = 'vm:' || v.id and o.kind = 'vm.delete' \
                and (o.state in ('queued', 'running') or o.undo_owed \
                     or o.finished_at > clock_timestamp() - make_interval(secs => $2))) \
             order by v.expires_at limit $1 for update of v skip locked",
        )
        .await?;
    read(&txn.query(&statement, &[&BATCH, &DELETE_PAUSE]).await?)
}

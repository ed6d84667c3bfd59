//! What is **pending** of a workspace: a transfer that may have changed it, and of which nobody has written what it did.
//!
//! It is written before the host is told to begin, so that a VM which stops, a worker which dies or a host which falls silent at any moment leaves
//! a row that says what to ask the guest for. Whoever settles it names it, and so writes nothing over what came later.

use contract::{
    OperationId, VmId,
    agent::Fence,
    worktree::{About, TransferSummary},
};
use operations::claim_holds_in_txn;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Client, GenericClient, StoreError};
use tokio_postgres::Row;
use uuid::Uuid;

use super::workspace::{COLUMNS, count, read, tell};

/// A transfer, as the guest knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Its id. It becomes the generation of the base that it makes.
    pub transfer: OperationId,
    /// What it does.
    pub what: What,
}

/// What a transfer does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Puts a tree there.
    Prepare {
        /// What it is taken from.
        about: About,
        /// Whose it becomes.
        owner: Option<String>,
    },
    /// Makes what is there the base.
    Advance,
    /// Has the guest forget the base that is known by this generation.
    Remove {
        /// The base's.
        generation: OperationId,
    },
}

impl What {
    /// What the event says when it happened.
    fn done(&self) -> &'static str {
        match self {
            Self::Prepare { .. } => "prepared",
            Self::Advance => "exported",
            Self::Remove { .. } => "removed",
        }
    }
}

/// A workspace with something pending.
#[derive(Clone, Debug)]
pub struct Unsettled {
    /// Its VM.
    pub vm: VmId,
    /// Its directory.
    pub path: String,
    /// What is.
    pub pending: Pending,
}

/// Whether what is pending was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    /// It was.
    Yes,
    /// There is no such workspace any more.
    Gone,
    /// Another worker has the operation.
    ClaimLost,
}

/// Notes a transfer that is about to begin.
///
/// # Errors
/// The database could not.
pub async fn pending_note(
    client: &mut Client,
    fence: Fence,
    vm: VmId,
    path: &str,
    pending: &Pending,
) -> Result<Noted, StoreError> {
    let transaction = client.transaction().await?;
    let update =
        "update workspace.workspace set pending = $3, updated_at = clock_timestamp() where vm_id = $1 and path = $2";
    let update = transaction.prepare_cached(update).await?;
    if transaction.execute(&update, &[&vm.0, &path, &json!(pending)]).await? == 0 {
        return Ok(Noted::Gone);
    }
    if !claim_holds_in_txn(&transaction, fence).await? {
        return Ok(Noted::ClaimLost);
    }
    transaction.commit().await.map_err(StoreError::committing)?;
    Ok(Noted::Yes)
}

/// What is pending of a VM's workspaces.
///
/// # Errors
/// The database could not.
pub async fn pending_of(client: &impl GenericClient, vm: VmId) -> Result<Vec<Unsettled>, StoreError> {
    let query =
        "select vm_id, path, pending from workspace.workspace where vm_id = $1 and pending is not null order by path";
    let statement = client.prepare_cached(query).await?;
    client.query(&statement, &[&vm.0]).await?.iter().map(unsettled).collect()
}

/// What is pending of workspaces that no operation works on, at most so many, of VMs after one.
///
/// # Errors
/// The database could not.
pub async fn pending_idle(
    client: &impl GenericClient,
    after: Option<VmId>,
    limit: i64,
) -> Result<Vec<Unsettled>, StoreError> {
    let statement = client
        .prepare_cached(
            "select w.vm_id, w.path, w.pending from workspace.workspace w \
             where w.pending is not null and ($1::uuid is null or w.vm_id > $1) and not exists \
               (select from operations.operation o where o.resource = 'workspace:' || w.vm_id and (o.state = 'running' or o.undo_owed)) \
             order by w.vm_id limit $2",
        )
        .await?;
    client.query(&statement, &[&after.map(|vm| vm.0), &limit]).await?.iter().map(unsettled).collect()
}

/// Writes what became of what was pending, unless somebody did or it is another by now: what it did, or that it did nothing. A workspace
/// where nothing ever was is none.
///
/// # Errors
/// The database could not.
pub async fn pending_settle(
    client: &mut Client,
    unsettled: &Unsettled,
    done: Option<&TransferSummary>,
) -> Result<(), StoreError> {
    let Unsettled { vm, path, pending: Pending { transfer, what } } = unsettled;
    let transaction = client.transaction().await?;
    let lock =
        "select from workspace.workspace where vm_id = $1 and path = $2 and pending->>'transfer' = $3 for update";
    let lock = transaction.prepare_cached(lock).await?;
    if transaction.query_opt(&lock, &[&vm.0, path, &transfer.to_string()]).await?.is_none() {
        return Ok(());
    }
    match (what, done) {
        (What::Prepare { about, owner }, Some(summary)) => {
            let update = "update workspace.workspace set owner = $3, about = $4, generation = $5, entries = $6, bytes = $7, \
                prepared_at = clock_timestamp() where vm_id = $1 and path = $2";
            let update = transaction.prepare_cached(update).await?;
            let (entries, bytes) = (count(summary.entries)?, count(summary.bytes)?);
            transaction.execute(&update, &[&vm.0, path, owner, &json!(about), &transfer.0, &entries, &bytes]).await?;
        }
        (What::Advance, Some(_)) => {
            let update = "update workspace.workspace set generation = $3, exported_at = clock_timestamp() \
                where vm_id = $1 and path = $2 and generation is not null";
            let update = transaction.prepare_cached(update).await?;
            transaction.execute(&update, &[&vm.0, path, &transfer.0]).await?;
        }
        (What::Remove { .. }, Some(_)) | (_, None) => {}
    }
    if done.is_some() {
        let columns = format!("select {COLUMNS} from workspace.workspace w where w.vm_id = $1 and w.path = $2");
        let look = transaction.prepare_cached(&columns).await?;
        tell(&transaction, &read(&transaction.query_one(&look, &[&vm.0, path]).await?)?, what.done()).await?;
    }
    let removed = matches!(what, What::Remove { .. }) && done.is_some();
    let end = "delete from workspace.workspace where vm_id = $1 and path = $2 and (generation is null or $3)";
    let end = transaction.prepare_cached(end).await?;
    transaction.execute(&end, &[&vm.0, path, &removed]).await?;
    let clear =
        "update workspace.workspace set pending = null, updated_at = clock_timestamp() where vm_id = $1 and path = $2";
    let clear = transaction.prepare_cached(clear).await?;
    transaction.execute(&clear, &[&vm.0, path]).await?;
    transaction.commit().await.map_err(StoreError::committing)
}

fn unsettled(row: &Row) -> Result<Unsettled, StoreError> {
    let pending = serde_json::from_value(row.try_get::<_, Value>("pending")?)
        .map_err(|error| StoreError::Schema(format!("column pending cannot be read: {error}")))?;
    Ok(Unsettled { vm: VmId(row.try_get::<_, Uuid>("vm_id")?), path: row.try_get("path")?, pending })
}

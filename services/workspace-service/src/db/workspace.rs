//! Workspaces as rows, and as clients see them.

use contract::{
    OperationId, VmId, VmName, WorkspaceId,
    agent::Fence,
    subject,
    worktree::{About, TransferSummary, Workspace},
};
use operations::claim_holds_in_txn;
use serde_json::{Value, json};
use store::{Client, GenericClient, StoreError, outbox, parsed};
use tokio_postgres::Row;
use uuid::Uuid;

/// The columns [`read`] reads.
pub(super) const COLUMNS: &str = "w.id, w.vm_id, w.vm_name, w.path, w.owner, w.about, w.generation, w.entries, w.bytes, w.prepared_at, \
     w.exported_at, w.pending->>'transfer' as pending, (select o.id from operations.operation o \
        where o.resource = 'workspace:' || w.vm_id and o.state = 'running') as operation";

/// Whether a write that names its claim took effect.
#[derive(Debug)]
pub enum Written {
    /// The workspace as it is now.
    Yes(Box<Workspace>),
    /// There is no such workspace any more; nothing was changed.
    Gone,
    /// Another worker has the operation; nothing was changed.
    ClaimLost,
}

/// The workspaces of a VM, by path.
///
/// # Errors
/// The database could not.
pub async fn workspaces_of(client: &impl GenericClient, vm: VmId) -> Result<Vec<Workspace>, StoreError> {
    let sql = format!("select {COLUMNS} from workspace.workspace w where w.vm_id = $1 order by w.path");
    let statement = client.prepare_cached(&sql).await?;
    client.query(&statement, &[&vm.0]).await?.iter().map(read).collect()
}

/// A page of workspaces by id, one more than asked for when there is more.
///
/// # Errors
/// The database could not.
pub async fn workspace_list(
    client: &impl GenericClient,
    vm: Option<VmId>,
    after: Option<WorkspaceId>,
    limit: u32,
) -> Result<Vec<Workspace>, StoreError> {
    let sql = format!(
        "select {COLUMNS} from workspace.workspace w \
         where ($1::uuid is null or w.vm_id = $1) and ($2::uuid is null or w.id > $2) order by w.id limit $3"
    );
    let statement = client.prepare_cached(&sql).await?;
    let (vm, after) = (vm.map(|vm| vm.0), after.map(|id| id.0));
    client.query(&statement, &[&vm, &after, &(i64::from(limit) + 1)]).await?.iter().map(read).collect()
}

/// Makes the row of a workspace that is about to be prepared, unless it is there.
///
/// # Errors
/// The database could not.
pub async fn workspace_reserve(
    client: &impl GenericClient,
    id: WorkspaceId,
    vm: VmId,
    name: &VmName,
    path: &str,
) -> Result<WorkspaceId, StoreError> {
    let statement = client
        .prepare_cached(
            "insert into workspace.workspace (id, vm_id, vm_name, path, about) values ($1, $2, $3, $4, $5) \
             on conflict (vm_id, path) do update set vm_name = excluded.vm_name returning id",
        )
        .await?;
    let about = json!(About::default());
    let row = client.query_one(&statement, &[&id.0, &vm.0, &name.as_str(), &path, &about]).await?;
    Ok(WorkspaceId(row.try_get(0)?))
}

/// Removes the row again if nothing was ever prepared there.
///
/// # Errors
/// The database could not.
pub async fn workspace_unreserve(client: &impl GenericClient, vm: VmId, path: &str) -> Result<(), StoreError> {
    let statement = client
        .prepare_cached(
            "delete from workspace.workspace where vm_id = $1 and path = $2 and generation is null and pending is null",
        )
        .await?;
    client.execute(&statement, &[&vm.0, &path]).await?;
    Ok(())
}

/// What a prepare left in its VM.
#[derive(Clone, Copy, Debug)]
pub struct Prepared<'a> {
    /// Its VM.
    pub vm: VmId,
    /// Its directory.
    pub path: &'a str,
    /// Whose the files are.
    pub owner: Option<&'a str>,
    /// What they were taken from.
    pub about: &'a About,
    /// What the guest knows the base by.
    pub generation: OperationId,
    /// What was moved.
    pub summary: &'a TransferSummary,
}

/// Writes what was prepared, and tells of it once however often this is repeated.
///
/// # Errors
/// The database could not.
pub async fn workspace_prepared(
    client: &mut Client,
    fence: Fence,
    prepared: Prepared<'_>,
) -> Result<Written, StoreError> {
    let transaction = client.transaction().await?;
    let update = transaction
        .prepare_cached(
            "update workspace.workspace set owner = $3, about = $4, generation = $5, entries = $6, bytes = $7, \
                pending = null, \
                prepared_at = clock_timestamp(), updated_at = clock_timestamp() where vm_id = $1 and path = $2",
        )
        .await?;
    let Prepared { vm, path, owner, about, generation, summary } = prepared;
    let (entries, bytes) = (count(summary.entries)?, count(summary.bytes)?);
    transaction.execute(&update, &[&vm.0, &path, &owner, &json!(about), &generation.0, &entries, &bytes]).await?;
    finish(transaction, fence, vm, path, "prepared").await
}

/// Writes that a workspace's changes were taken out; with `advanced`, that they are its base now.
///
/// # Errors
/// The database could not.
pub async fn workspace_exported(
    client: &mut Client,
    fence: Fence,
    vm: VmId,
    path: &str,
    advanced: Option<OperationId>,
) -> Result<Written, StoreError> {
    let transaction = client.transaction().await?;
    let update = transaction
        .prepare_cached(
            "update workspace.workspace set generation = case when generation is null then null \
                else coalesce($3, generation) end, exported_at = clock_timestamp(), pending = null, \
                updated_at = clock_timestamp() \
             where vm_id = $1 and path = $2",
        )
        .await?;
    transaction.execute(&update, &[&vm.0, &path, &advanced.map(|operation| operation.0)]).await?;
    finish(transaction, fence, vm, path, "exported").await
}

/// Tells of a write once, and commits it if the claim holds.
async fn finish(
    transaction: store::Transaction<'_>,
    fence: Fence,
    vm: VmId,
    path: &str,
    what: &str,
) -> Result<Written, StoreError> {
    let first =
        "update workspace.workspace set told_by = $3 where vm_id = $1 and path = $2 and told_by is distinct from $3";
    let first = transaction.prepare_cached(first).await?;
    let first = transaction.execute(&first, &[&vm.0, &path, &fence.operation.0]).await? == 1;
    let sql = format!("select {COLUMNS} from workspace.workspace w where w.vm_id = $1 and w.path = $2");
    let look = transaction.prepare_cached(&sql).await?;
    let Some(row) = transaction.query_opt(&look, &[&vm.0, &path]).await? else { return Ok(Written::Gone) };
    let workspace = read(&row)?;
    if first {
        tell(&transaction, &workspace, what).await?;
    }
    if !claim_holds_in_txn(&transaction, fence).await? {
        return Ok(Written::ClaimLost);
    }
    transaction.commit().await.map_err(StoreError::committing)?;
    Ok(Written::Yes(Box::new(workspace)))
}

/// Removes a workspace's row; nothing there is fine. Whether the claim held.
///
/// # Errors
/// The database could not.
pub async fn workspace_removed(client: &mut Client, fence: Fence, vm: VmId, path: &str) -> Result<bool, StoreError> {
    let transaction = client.transaction().await?;
    let sql = format!("delete from workspace.workspace w where w.vm_id = $1 and w.path = $2 returning {COLUMNS}");
    let delete = transaction.prepare_cached(&sql).await?;
    if let Some(row) = transaction.query_opt(&delete, &[&vm.0, &path]).await? {
        tell(&transaction, &read(&row)?, "removed").await?;
    }
    if !claim_holds_in_txn(&transaction, fence).await? {
        return Ok(false);
    }
    transaction.commit().await.map_err(StoreError::committing)?;
    Ok(true)
}

/// VMs that have workspaces: a page by id.
///
/// # Errors
/// The database could not.
pub async fn vms_with_workspaces(
    client: &impl GenericClient,
    after: Option<VmId>,
    limit: i64,
) -> Result<Vec<VmId>, StoreError> {
    let statement = client
        .prepare_cached(
            "select distinct vm_id from workspace.workspace where $1::uuid is null or vm_id > $1 order by vm_id limit $2",
        )
        .await?;
    let rows = client.query(&statement, &[&after.map(|vm| vm.0), &limit]).await?;
    rows.iter().map(|row| Ok(VmId(row.try_get::<_, Uuid>(0)?))).collect()
}

/// Removes the rows of a VM that is gone; how many there were.
///
/// # Errors
/// The database could not.
pub async fn workspaces_forget(client: &mut Client, vm: VmId) -> Result<usize, StoreError> {
    let transaction = client.transaction().await?;
    let sql = format!("delete from workspace.workspace w where w.vm_id = $1 returning {COLUMNS}");
    let delete = transaction.prepare_cached(&sql).await?;
    let gone = transaction.query(&delete, &[&vm.0]).await?;
    for row in &gone {
        tell(&transaction, &read(row)?, "removed").await?;
    }
    transaction.commit().await.map_err(StoreError::committing)?;
    Ok(gone.len())
}

/// Writes what a VM is called now.
///
/// # Errors
/// The database could not.
pub async fn vm_renamed(client: &impl GenericClient, vm: VmId, name: &VmName) -> Result<(), StoreError> {
    let update = "update workspace.workspace set vm_name = $2 where vm_id = $1 and vm_name <> $2";
    let statement = client.prepare_cached(update).await?;
    client.execute(&statement, &[&vm.0, &name.as_str()]).await?;
    Ok(())
}

pub(super) async fn tell(
    transaction: &impl GenericClient,
    workspace: &Workspace,
    what: &str,
) -> Result<(), StoreError> {
    let data = json!({
        "vm": workspace.vm, "vm_name": workspace.vm_name, "path": workspace.path, "generation": workspace.generation,
    });
    outbox::push(transaction, &subject::event("workspace", workspace.id, what), &data).await
}

pub(super) fn count(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Schema(format!("no tree has {number} entries or bytes")))
}

pub(super) fn read(row: &Row) -> Result<Workspace, StoreError> {
    let about = serde_json::from_value(row.try_get::<_, Value>("about")?)
        .map_err(|error| StoreError::Schema(format!("column about cannot be read: {error}")))?;
    let operation = |column: &str| Ok::<_, StoreError>(row.try_get::<_, Option<Uuid>>(column)?.map(OperationId));
    let under_way = operation("operation")?;
    let pending: Option<OperationId> = row.try_get::<_, Option<String>>("pending")?.and_then(|id| id.parse().ok());
    Ok(Workspace {
        id: WorkspaceId(row.try_get("id")?),
        vm: VmId(row.try_get("vm_id")?),
        vm_name: parsed(row, "vm_name")?,
        path: row.try_get("path")?,
        owner: row.try_get("owner")?,
        about,
        generation: operation("generation")?,
        entries: row.try_get::<_, i64>("entries")?.unsigned_abs(),
        bytes: row.try_get::<_, i64>("bytes")?.unsigned_abs(),
        prepared_at: row.try_get("prepared_at")?,
        exported_at: row.try_get("exported_at")?,
        operation: under_way,
        // An operation that works on it settles it.
        unsettled: pending.filter(|_| under_way.is_none()),
    })
}

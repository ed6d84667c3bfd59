//! A **replica**: a host that has a kernel.

use contract::{HostId, KernelId, agent::Fence, subject};
use serde_json::json;
use store::{Client, GenericClient, StoreError, Transaction, outbox};

use crate::db::{claim_holds_in_txn, parsed, replica::Replica};

/// How long a placement's transaction may rest while a host renames: as that of a publication.
const IDLE_MAX: &str = "20s";

/// Whether the host has the kernel; then it stays until the transaction ends.
pub(super) async fn replica_there_in_txn(
    client: &impl GenericClient,
    kernel: KernelId,
    host: &HostId,
) -> Result<bool, StoreError> {
    let look = client
        .prepare_cached("select from image.kernel_replica where kernel_id = $1 and host_id = $2 for key share")
        .await?;
    Ok(client.query_opt(&look, &[&kernel.0, &host.as_str()]).await?.is_some())
}

/// Takes down that the host has the kernel; one that was missing is there again.
pub(super) async fn replica_add_in_txn(
    client: &impl GenericClient,
    kernel: KernelId,
    host: &HostId,
) -> Result<(), StoreError> {
    let insert = "insert into image.kernel_replica (kernel_id, host_id) values ($1, $2) on conflict (kernel_id, host_id) \
         do update set missing_at = null, created_at = clock_timestamp()";
    let insert = client.prepare_cached(insert).await?;
    client.execute(&insert, &[&kernel.0, &host.as_str()]).await?;
    Ok(())
}

/// A kernel that stays until the transaction ends, while a host is given it.
pub struct Placing<'a> {
    transaction: Transaction<'a>,
    kernel: KernelId,
    fence: Fence,
}

/// Holds the kernel; nothing when it is there no more.
///
/// # Errors
/// The database could not.
pub async fn kernel_keep(
    client: &mut Client,
    kernel: KernelId,
    fence: Fence,
) -> Result<Option<Placing<'_>>, StoreError> {
    hold(client, kernel, fence, "for key share").await
}

/// As [`kernel_keep`], alone: nobody gives any host the kernel meanwhile, and who was about to waits.
///
/// # Errors
/// The database could not.
pub async fn kernel_keep_alone(
    client: &mut Client,
    kernel: KernelId,
    fence: Fence,
) -> Result<Option<Placing<'_>>, StoreError> {
    hold(client, kernel, fence, "for update").await
}

async fn hold<'a>(
    client: &'a mut Client,
    kernel: KernelId,
    fence: Fence,
    lock: &str,
) -> Result<Option<Placing<'a>>, StoreError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(&format!("set local idle_in_transaction_session_timeout = '{IDLE_MAX}'")).await?;
    let lock = transaction.prepare_cached(&format!("select from image.kernel where id = $1 {lock}")).await?;
    let there = transaction.query_opt(&lock, &[&kernel.0]).await?.is_some();
    Ok(there.then_some(Placing { transaction, kernel, fence }))
}

impl Placing<'_> {
    /// Whether the host has it.
    ///
    /// # Errors
    /// The database could not.
    pub async fn there(&self, host: &HostId) -> Result<bool, StoreError> {
        replica_there_in_txn(&self.transaction, self.kernel, host).await
    }

    /// Takes down that the host has it, and commits; no, where the claim is lost: then nothing was written.
    ///
    /// # Errors
    /// The database could not.
    pub async fn placed(self, host: &HostId) -> Result<bool, StoreError> {
        replica_add_in_txn(&self.transaction, self.kernel, host).await?;
        if !claim_holds_in_txn(&self.transaction, self.fence).await? {
            return Ok(false);
        }
        self.transaction.commit().await.map_err(StoreError::committing)?;
        Ok(true)
    }
}

/// Every replica's row, as the reconciler compares it.
///
/// # Errors
/// The database could not.
pub async fn kernel_replica_list(client: &impl GenericClient) -> Result<Vec<Replica<KernelId>>, StoreError> {
    let statement = client
        .prepare_cached(
            "select r.kernel_id, r.host_id, k.digest, r.missing_at is not null as missing, r.created_at, \
                (select count(*) from vm.vm v where v.kernel_id = r.kernel_id and v.host_id = r.host_id) as vms \
             from image.kernel_replica r join image.kernel k on k.id = r.kernel_id order by r.host_id, r.kernel_id",
        )
        .await?;
    let rows = client.query(&statement, &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Replica {
                id: KernelId(row.try_get("kernel_id")?),
                host: parsed(row, "host_id")?,
                digest: row.try_get("digest")?,
                missing: row.try_get("missing")?,
                created_at: row.try_get("created_at")?,
                vms: row.try_get("vms")?,
            })
        })
        .collect()
}

/// Notes that the host lacks the kernel, or has it again, and tells of it; nothing when the replica is another by now, or the note is there.
///
/// # Errors
/// The database could not.
pub async fn kernel_replica_note(
    client: &mut Client,
    replica: &Replica<KernelId>,
    missing: bool,
) -> Result<bool, StoreError> {
    let transaction = client.transaction().await?;
    let update = transaction
        .prepare_cached(
            "update image.kernel_replica set missing_at = case when $4 then clock_timestamp() end \
             where kernel_id = $1 and host_id = $2 and created_at = $3 and (missing_at is not null) <> $4",
        )
        .await?;
    let (host, created_at) = (replica.host.as_str(), replica.created_at);
    if transaction.execute(&update, &[&replica.id.0, &host, &created_at, &missing]).await? == 0 {
        return Ok(false);
    }
    let what = if missing { "missing" } else { "returned" };
    let event = json!({ "host": replica.host, "digest": replica.digest });
    outbox::push(&transaction, &subject::event("kernel", replica.id, what), &event).await?;
    transaction.commit().await.map_err(StoreError::committing)?;
    Ok(true)
}

/// Forgets a replica on a host that the lab does not have any more.
///
/// # Errors
/// The database could not.
pub async fn kernel_replica_forget(client: &impl GenericClient, replica: &Replica<KernelId>) -> Result<(), StoreError> {
    let delete = "delete from image.kernel_replica where kernel_id = $1 and host_id = $2 and created_at = $3";
    let statement = client.prepare_cached(delete).await?;
    client.execute(&statement, &[&replica.id.0, &replica.host.as_str(), &replica.created_at]).await?;
    Ok(())
}

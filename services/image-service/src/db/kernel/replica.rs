//! A **replica**: a host that has a kernel.

use contract::{HostId, KernelId, agent::Fence};
use store::{Client, GenericClient, StoreError, Transaction};

use crate::db::claim_holds_in_txn;

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

/// Takes down that the host has the kernel.
pub(super) async fn replica_add_in_txn(
    client: &impl GenericClient,
    kernel: KernelId,
    host: &HostId,
) -> Result<(), StoreError> {
    let insert = "insert into image.kernel_replica (kernel_id, host_id) values ($1, $2) on conflict do nothing";
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

//! A **name** of a kernel in one transaction's hands: its row lock is the claim of whoever decides what it means. The publication happens
//! while it is held: the files are renamed, then the rows are written.
//!
//! Locks are taken in the order name, kernel.

use contract::{HostId, KernelId, KernelName, OperationId, agent::Fence, agent::StagedKernel, kernel::Kernel, subject};
use serde_json::json;
use store::{Client, GenericClient, StoreError, Transaction, outbox};
use uuid::Uuid;

use super::{
    arrival::kernel_arrive_in_txn,
    lookup::{kernel_get, kernel_named},
    replica::{replica_add_in_txn, replica_there_in_txn},
};
use crate::db::claim_holds_in_txn;

/// How long a transaction that holds a name may rest between two statements: as that of an image's name (`db/name.rs`).
const IDLE_MAX: &str = "20s";

/// What a name means already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The kernel.
    pub kernel: KernelId,
    /// The operation that made it so.
    pub set_by: Option<OperationId>,
}

/// A name held by an operation.
pub struct Held<'a> {
    transaction: Transaction<'a>,
    name: KernelName,
    fence: Fence,
    /// What the name means already, if anything.
    pub holder: Option<Holder>,
}

/// Takes the row lock on a name, free or not; waits while another transaction holds it. The kernel need not be there yet.
///
/// # Errors
/// The database could not.
pub async fn kernel_name_hold<'a>(
    client: &'a mut Client,
    name: &KernelName,
    kernel: KernelId,
    fence: Fence,
) -> Result<Held<'a>, StoreError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(&format!("set local idle_in_transaction_session_timeout = '{IDLE_MAX}'")).await?;
    let insert = transaction
        .prepare_cached(
            "insert into image.kernel_name (name, kernel_id, set_by) values ($1, $2, $3) on conflict (name) do nothing",
        )
        .await?;
    let lock = transaction
        .prepare_cached("select kernel_id, set_by from image.kernel_name where name = $1 for update")
        .await?;
    let holder = loop {
        if transaction.execute(&insert, &[&name.as_str(), &kernel.0, &fence.operation.0]).await? == 1 {
            break None;
        }
        // Between the two statements a delete may have removed the row: then the insert has its turn again.
        if let Some(row) = transaction.query_opt(&lock, &[&name.as_str()]).await? {
            let set_by = row.try_get::<_, Option<Uuid>>(1)?.map(OperationId);
            break Some(Holder { kernel: KernelId(row.try_get(0)?), set_by });
        }
    };
    Ok(Held { transaction, name: name.clone(), fence, holder })
}

impl Held<'_> {
    /// The digest of a kernel.
    ///
    /// # Errors
    /// The database could not.
    pub async fn digest(&self, kernel: KernelId) -> Result<Option<String>, StoreError> {
        let statement = self.transaction.prepare_cached("select digest from image.kernel where id = $1").await?;
        let row = self.transaction.query_opt(&statement, &[&kernel.0]).await?;
        row.map(|row| Ok(row.try_get(0)?)).transpose()
    }

    /// The kernel of the digest that was staged: the one there is, or this one from now on. It stays until the transaction ends.
    ///
    /// # Errors
    /// The database could not.
    pub async fn kernel(&self, id: KernelId, source: &str, staged: &StagedKernel) -> Result<KernelId, StoreError> {
        kernel_arrive_in_txn(&self.transaction, id, source, staged, false).await
    }

    /// Whether the host is to have the kernel.
    ///
    /// # Errors
    /// The database could not.
    pub async fn replicated(&self, kernel: KernelId, host: &HostId) -> Result<bool, StoreError> {
        replica_there_in_txn(&self.transaction, kernel, host).await
    }

    /// Takes down that the host has the kernel, whose files stand at their final place.
    ///
    /// # Errors
    /// The database could not.
    pub async fn replicate(&self, kernel: KernelId, host: &HostId) -> Result<(), StoreError> {
        replica_add_in_txn(&self.transaction, kernel, host).await
    }

    /// Makes the name mean the kernel, which is there, tells of it, and commits.
    ///
    /// # Errors
    /// The database could not. Nothing when the claim is lost: then nothing was written.
    pub async fn point(self, kernel: KernelId) -> Result<Option<Kernel>, StoreError> {
        let (transaction, by) = (self.transaction, self.fence.operation.0);
        // What means this kernel already keeps who made it so: an undo of this operation is not to take it away.
        if self.holder.is_none_or(|holder| holder.kernel != kernel) {
            let update = transaction
                .prepare_cached(
                    "update image.kernel_name set was = case when kernel_id = $2 then was else kernel_id end, \
                     kernel_id = $2, set_by = $3 where name = $1 and (kernel_id <> $2 or set_by is distinct from $3)",
                )
                .await?;
            if self.holder.is_none() {
                // Its row was made a moment ago, for the id this operation would have given; nothing was before.
                let fresh = "update image.kernel_name set kernel_id = $2 where name = $1";
                transaction.execute(fresh, &[&self.name.as_str(), &kernel.0]).await?;
            } else {
                transaction.execute(&update, &[&self.name.as_str(), &kernel.0, &by]).await?;
            }
        }
        let shown = kernel_named(&transaction, &self.name).await?;
        let shown = shown.ok_or_else(|| StoreError::Schema("a name just set is not there".to_owned()))?;
        let event =
            json!({ "name": shown.name, "digest": shown.digest, "release": shown.release, "hosts": shown.hosts });
        outbox::push(&transaction, &subject::event("kernel", kernel, "imported"), &event).await?;
        if !claim_holds_in_txn(&transaction, self.fence).await? {
            return Ok(None);
        }
        transaction.commit().await.map_err(StoreError::committing)?;
        Ok(Some(shown))
    }

    /// The kernel, as an earlier try of the same step left it.
    ///
    /// # Errors
    /// The database could not.
    pub async fn published(self, id: KernelId) -> Result<Option<Kernel>, StoreError> {
        match kernel_named(&self.transaction, &self.name).await? {
            Some(kernel) => Ok(Some(kernel)),
            None => kernel_get(&self.transaction, id).await,
        }
    }
}

/// Lets a name mean what it meant before this operation, where it means what that made of it; free if that is gone.
pub(super) async fn kernel_name_return_in_txn(
    transaction: &impl GenericClient,
    name: &KernelName,
    by: OperationId,
) -> Result<(), StoreError> {
    let back = transaction
        .prepare_cached(
            "update image.kernel_name n set kernel_id = n.was, set_by = null, was = null from image.kernel k \
             where n.name = $1 and n.set_by = $2 and k.id = n.was",
        )
        .await?;
    let free = transaction.prepare_cached("delete from image.kernel_name where name = $1 and set_by = $2").await?;
    transaction.execute(&back, &[&name.as_str(), &by.0]).await?;
    transaction.execute(&free, &[&name.as_str(), &by.0]).await?;
    Ok(())
}

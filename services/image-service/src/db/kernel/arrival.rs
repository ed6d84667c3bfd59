//! An **arrival**: a kernel that was staged becomes the lab's, by an import or along with an image. The second happens in the transaction
//! that publishes the image, so that the kernel and the image's naming it appear at once.
//!
//! Locks are taken in the order name of the image, image, kernel.

use contract::{HostId, ImageId, KernelId, agent::StagedKernel, subject};
use serde_json::json;
use store::{GenericClient, StoreError, outbox};

use super::{
    lookup::kernel_get,
    replica::{replica_add_in_txn, replica_there_in_txn},
};
use crate::db::{image::image_set_kernel, name::Held};

/// The kernel of the digest that was staged: the one there is, or this one from now on. It stays until the transaction ends. One
/// that came along with an image, and that somebody imports, is wanted for itself from then on.
pub(super) async fn kernel_arrive_in_txn(
    transaction: &impl GenericClient,
    id: KernelId,
    source: &str,
    staged: &StagedKernel,
    along: bool,
) -> Result<KernelId, StoreError> {
    let bytes =
        i64::try_from(staged.bytes).map_err(|_| StoreError::Schema(format!("no kernel has {} bytes", staged.bytes)))?;
    let insert = transaction
        .prepare_cached(
            "insert into image.kernel (id, digest, release, architecture, bytes, source, along) \
             values ($1, $2, $3, $4, $5, $6, $7) on conflict (digest) do nothing",
        )
        .await?;
    let lock = transaction.prepare_cached("select id from image.kernel where digest = $1 for key share").await?;
    loop {
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 7] =
            [&id.0, &staged.digest, &staged.release, &staged.architecture, &bytes, &source, &along];
        if transaction.execute(&insert, &values).await? == 1 {
            return Ok(id);
        }
        // Between the two statements a delete may have removed the row: then the insert has its turn again.
        if let Some(row) = transaction.query_opt(&lock, &[&staged.digest]).await? {
            let there = KernelId(row.try_get(0)?);
            if !along {
                let wanted = "update image.kernel set along = false, unused_at = null where id = $1 and along";
                let wanted = transaction.prepare_cached(wanted).await?;
                transaction.execute(&wanted, &[&there.0]).await?;
            }
            return Ok(there);
        }
    }
}

impl Held<'_> {
    /// The kernel that came along, as an import has it: the one of that digest, or this one from now on.
    ///
    /// # Errors
    /// The database could not.
    pub async fn kernel(&self, id: KernelId, source: &str, staged: &StagedKernel) -> Result<KernelId, StoreError> {
        kernel_arrive_in_txn(&self.transaction, id, source, staged, true).await
    }

    /// Whether the host is to have the kernel; then it stays until the transaction ends.
    ///
    /// # Errors
    /// The database could not.
    pub async fn kernel_there(&self, kernel: KernelId, host: &HostId) -> Result<bool, StoreError> {
        replica_there_in_txn(&self.transaction, kernel, host).await
    }

    /// Takes down that the host has the kernel, whose files stand at their final place.
    ///
    /// # Errors
    /// The database could not.
    pub async fn kernel_replicate(&self, kernel: KernelId, host: &HostId) -> Result<(), StoreError> {
        replica_add_in_txn(&self.transaction, kernel, host).await
    }

    /// Has the image name the kernel, and tells of this where it was not there before.
    ///
    /// # Errors
    /// The database could not.
    pub async fn name_kernel(&self, image: ImageId, kernel: KernelId, arrived: bool) -> Result<(), StoreError> {
        image_set_kernel(&self.transaction, image, Some(kernel)).await?;
        if arrived && let Some(shown) = kernel_get(&self.transaction, kernel).await? {
            let event =
                json!({ "name": shown.name, "digest": shown.digest, "release": shown.release, "hosts": shown.hosts });
            outbox::push(&self.transaction, &subject::event("kernel", kernel, "imported"), &event).await?;
        }
        Ok(())
    }
}

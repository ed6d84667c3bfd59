//! The **publication**: the transaction in which a name begins to mean an image that was staged. The host-agent's rename
//! happens while the name is held ([`super::name`]).
//!
//! Locks are taken in the order name, image.

use contract::{HostId, ImageId, agent::StagedImage};
use serde_json::json;
use store::StoreError;

use super::name::Held;

impl Held<'_> {
    /// The image of the digest that was staged: the one there is, or this one from now on. It stays until the transaction
    /// ends, and who publishes the same digest waits for that.
    ///
    /// # Errors
    /// The database could not.
    pub async fn image(&self, id: ImageId, source: &str, staged: &StagedImage) -> Result<ImageId, StoreError> {
        let bytes = i64::try_from(staged.rootfs_bytes)
            .map_err(|_| StoreError::Schema(format!("no root filesystem has {} bytes", staged.rootfs_bytes)))?;
        let insert = self
            .transaction
            .prepare_cached(
                "insert into image.image (id, digest, source, architecture, rootfs_bytes, config) \
                 values ($1, $2, $3, $4, $5, $6) on conflict (digest) where not twin do nothing",
            )
            .await?;
        let lock = self
            .transaction
            .prepare_cached("select id from image.image where digest = $1 and not twin for key share")
            .await?;
        let config = json!(staged.config);
        loop {
            let new = [&id.0 as &(dyn tokio_postgres::types::ToSql + Sync), &staged.digest, &source];
            let new = new.into_iter().chain([&staged.architecture as _, &bytes as _, &config as _]).collect::<Vec<_>>();
            if self.transaction.execute(&insert, &new).await? == 1 {
                return Ok(id);
            }
            // Between the two statements a delete may have removed the row: then the insert has its turn again.
            if let Some(row) = self.transaction.query_opt(&lock, &[&staged.digest]).await? {
                return Ok(ImageId(row.try_get(0)?));
            }
        }
    }

    /// Whether the host holds the image.
    ///
    /// # Errors
    /// The database could not.
    pub async fn replicated(&self, image: ImageId, host: &HostId) -> Result<bool, StoreError> {
        let look = self
            .transaction
            .prepare_cached("select from image.replica where image_id = $1 and host_id = $2 for key share")
            .await?;
        Ok(self.transaction.query_opt(&look, &[&image.0, &host.as_str()]).await?.is_some())
    }

    /// Takes down that the host holds the image, whose files stand at their final place.
    ///
    /// # Errors
    /// The database could not.
    pub async fn replicate(&self, image: ImageId, host: &HostId) -> Result<(), StoreError> {
        let insert = self
            .transaction
            .prepare_cached("insert into image.replica (image_id, host_id) values ($1, $2) on conflict do nothing")
            .await?;
        self.transaction.execute(&insert, &[&image.0, &host.as_str()]).await?;
        Ok(())
    }
}

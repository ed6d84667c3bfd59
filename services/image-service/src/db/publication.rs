//! The **publication**: the transaction in which a name begins to mean an image that was staged. The host-agent's rename
//! happens while the name is held ([`super::name`]).
//!
//! Locks are taken in the order name, image.

use contract::{HostId, ImageId, agent::StagedImage};
use serde_json::json;
use store::StoreError;

use super::{
    name::Held,
    usage::{Users, replica_users},
};

/// What a host has of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holding {
    /// The whole of it.
    Whole,
    /// Nothing.
    Absent,
    /// It is to have it, and was found to lack it; nothing builds on it.
    Missing,
    /// The same, and these VMs' disks build on the very files that are gone: others, of the same content, have it elsewhere in them.
    Lost(Users),
}

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

    /// What the host has of the image. What is said of it stays true until the transaction ends: nobody else brings back a
    /// missing replica, and no VM is reserved on it.
    ///
    /// # Errors
    /// The database could not.
    pub async fn replica(&self, image: ImageId, host: &HostId) -> Result<Holding, StoreError> {
        let look = |lock: &str| {
            format!("select missing_at is not null from image.replica where image_id = $1 and host_id = $2 {lock}")
        };
        let [look, share, own] = [look(""), look("for key share"), look("for update")];
        let (look, share, own) = (
            self.transaction.prepare_cached(&look).await?,
            self.transaction.prepare_cached(&share).await?,
            self.transaction.prepare_cached(&own).await?,
        );
        let host = host.as_str();
        loop {
            // The stronger lock at once where it is needed: two that share the weaker one could not both have it.
            let Some(row) = self.transaction.query_opt(&look, &[&image.0, &host]).await? else {
                return Ok(Holding::Absent);
            };
            let missing: bool = row.try_get(0)?;
            let lock = if missing { &own } else { &share };
            match self.transaction.query_opt(lock, &[&image.0, &host]).await? {
                Some(row) if row.try_get::<_, bool>(0)? == missing => {}
                // It changed while it was waited for.
                _ => continue,
            }
            if !missing {
                return Ok(Holding::Whole);
            }
            let users = replica_users(&self.transaction, image, host).await?;
            return Ok(if users.count == 0 { Holding::Missing } else { Holding::Lost(users) });
        }
    }

    /// Whether any host holds the image whole.
    ///
    /// # Errors
    /// The database could not.
    pub async fn anywhere(&self, image: ImageId) -> Result<bool, StoreError> {
        let look = self
            .transaction
            .prepare_cached(
                "select from image.replica where image_id = $1 and missing_at is null limit 1 for key share",
            )
            .await?;
        Ok(self.transaction.query_opt(&look, &[&image.0]).await?.is_some())
    }

    /// Takes down that the host holds the image, whose files stand at their final place; a missing one is there again.
    ///
    /// # Errors
    /// The database could not.
    pub async fn replicate(&self, image: ImageId, host: &HostId) -> Result<(), StoreError> {
        let insert = self
            .transaction
            .prepare_cached(
                "insert into image.replica (image_id, host_id) values ($1, $2) on conflict (image_id, host_id) \
                 do update set missing_at = null, created_at = clock_timestamp() where replica.missing_at is not null",
            )
            .await?;
        self.transaction.execute(&insert, &[&image.0, &host.as_str()]).await?;
        Ok(())
    }
}

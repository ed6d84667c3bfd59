//! A **name** in one transaction's hands: its row lock is the claim of whoever decides what it means.

use contract::{ImageId, ImageName, KernelId, OperationId, agent::Fence, image::Image, subject};
use serde_json::json;
use store::{Client, GenericClient, StoreError, Transaction, outbox};
use uuid::Uuid;

use super::{
    claim_holds_in_txn,
    image::{image_get, image_named, image_set_kernel},
};

/// How long a transaction that holds a name may rest between two statements, as PostgreSQL takes it: twice
/// [`contract::deadline::PUBLISH`]. A worker that hangs with the lock in hand loses it then.
const IDLE_MAX: &str = "20s";

/// What a name means already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The image.
    pub image: ImageId,
    /// The operation that made it so; not known of names from before these were taken down.
    pub set_by: Option<OperationId>,
}

/// What a name that is to be changed means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Old {
    /// The image.
    pub image: ImageId,
    /// The name's own source, if it has one.
    pub source: Option<String>,
}

/// A name held by an operation.
pub struct Held<'a> {
    pub(super) transaction: Transaction<'a>,
    name: ImageName,
    pub(super) fence: Fence,
    /// What the name means already, if anything.
    pub holder: Option<Holder>,
}

/// Takes the row lock on a name, free or not; waits while another transaction holds it. The image need not be there yet.
///
/// # Errors
/// The database could not.
pub async fn name_hold<'a>(
    client: &'a mut Client,
    name: &ImageName,
    image: ImageId,
    fence: Fence,
) -> Result<Held<'a>, StoreError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(&format!("set local idle_in_transaction_session_timeout = '{IDLE_MAX}'")).await?;
    let holder = hold_in_txn(&transaction, name, image, fence).await?;
    Ok(Held { transaction, name: name.clone(), fence, holder })
}

/// As [`name_hold`]; another name is held too, both in their order, so that no two transactions wait for each other.
///
/// # Errors
/// The database could not.
pub async fn names_hold<'a>(
    client: &'a mut Client,
    from: &ImageName,
    to: &ImageName,
    image: ImageId,
    fence: Fence,
) -> Result<(Held<'a>, Option<Old>), StoreError> {
    let transaction = client.transaction().await?;
    let lock = transaction
        .prepare_cached("select name, image_id, source from image.name where name in ($1, $2) order by name for update")
        .await?;
    let rows = transaction.query(&lock, &[&from.as_str(), &to.as_str()]).await?;
    let old = rows.iter().find(|row| row.get::<_, &str>(0) == from.as_str());
    let old = old.map(|row| Old { image: ImageId(row.get(1)), source: row.get(2) });
    let holder = hold_in_txn(&transaction, to, image, fence).await?;
    Ok((Held { transaction, name: to.clone(), fence, holder }, old))
}

async fn hold_in_txn(
    transaction: &Transaction<'_>,
    name: &ImageName,
    image: ImageId,
    fence: Fence,
) -> Result<Option<Holder>, StoreError> {
    let insert = transaction
        .prepare_cached(
            "insert into image.name (name, image_id, set_by) values ($1, $2, $3) on conflict (name) do nothing",
        )
        .await?;
    let lock = transaction.prepare_cached("select image_id, set_by from image.name where name = $1 for update").await?;
    loop {
        // Waits for a transaction that inserted the name and has not ended.
        if transaction.execute(&insert, &[&name.as_str(), &image.0, &fence.operation.0]).await? == 1 {
            return Ok(None);
        }
        // Between the two statements a delete may have removed the row: then the insert has its turn again.
        if let Some(row) = transaction.query_opt(&lock, &[&name.as_str()]).await? {
            let set_by = row.try_get::<_, Option<Uuid>>(1)?.map(OperationId);
            return Ok(Some(Holder { image: ImageId(row.try_get(0)?), set_by }));
        }
    }
}

impl Held<'_> {
    /// The digest of the image the name means.
    ///
    /// # Errors
    /// The database could not.
    pub async fn digest(&self, image: ImageId) -> Result<Option<String>, StoreError> {
        let statement = self.transaction.prepare_cached("select digest from image.image where id = $1").await?;
        let row = self.transaction.query_opt(&statement, &[&image.0]).await?;
        row.map(|row| Ok(row.try_get(0)?)).transpose()
    }

    /// Whether the image is there; then it stays until the transaction ends.
    ///
    /// # Errors
    /// The database could not.
    pub async fn keep(&self, image: ImageId) -> Result<bool, StoreError> {
        let lock = self.transaction.prepare_cached("select from image.image where id = $1 for key share").await?;
        Ok(self.transaction.query_opt(&lock, &[&image.0]).await?.is_some())
    }

    /// The kernel the image names.
    ///
    /// # Errors
    /// The database could not.
    pub async fn boots_now(&self, image: ImageId) -> Result<Option<KernelId>, StoreError> {
        let look = self.transaction.prepare_cached("select kernel_id from image.image where id = $1").await?;
        let row = self.transaction.query_opt(&look, &[&image.0]).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?.flatten().map(KernelId))
    }

    /// Lets the image, which is there, name a kernel, or none.
    ///
    /// # Errors
    /// The database could not; the constraint [`super::image::IMAGE_KERNEL`] where there is no such kernel.
    pub async fn boots(&self, image: ImageId, kernel: Option<KernelId>) -> Result<(), StoreError> {
        image_set_kernel(&self.transaction, image, kernel).await
    }

    /// Lets the image, which is there, name a kernel; one that is gone by now it does not.
    ///
    /// # Errors
    /// The database could not.
    pub async fn boots_if_there(&self, image: ImageId, kernel: KernelId) -> Result<(), StoreError> {
        let keep = self.transaction.prepare_cached("select from image.kernel where id = $1 for key share").await?;
        match self.transaction.query_opt(&keep, &[&kernel.0]).await? {
            Some(_) => image_set_kernel(&self.transaction, image, Some(kernel)).await,
            None => Ok(()),
        }
    }

    /// Lets the image, which is there, name the kernel that another names now, or none.
    ///
    /// # Errors
    /// The database could not.
    pub async fn boots_as(&self, image: ImageId, base: ImageId) -> Result<(), StoreError> {
        let look = self.transaction.prepare_cached("select kernel_id from image.image where id = $1").await?;
        let row = self.transaction.query_opt(&look, &[&base.0]).await?;
        match row.map(|row| row.try_get::<_, Option<Uuid>>(0)).transpose()?.flatten() {
            Some(kernel) => self.boots_if_there(image, KernelId(kernel)).await,
            None => Ok(()),
        }
    }

    /// Makes the name mean the image, which is there, tells of it, and commits. Without a source the name has that of its image.
    ///
    /// # Errors
    /// The database could not. Nothing when the claim is lost: then nothing was written.
    pub async fn point(self, image: ImageId, source: Option<&str>, what: &str) -> Result<Option<Image>, StoreError> {
        let (transaction, by) = (self.transaction, self.fence.operation.0);
        let update = transaction
            .prepare_cached(
                "update image.name set was = case when image_id = $2 then was else image_id end, \
                 was_source = case when image_id = $2 then was_source else source end, \
                 image_id = $2, source = $4, set_by = $3 where name = $1",
            )
            .await?;
        // What means this image already keeps who made it so: an undo of this operation is not to take it away.
        if self.holder.is_none_or(|holder| holder.image != image) {
            transaction.execute(&update, &[&self.name.as_str(), &image.0, &by, &source]).await?;
        }
        let shown = image_named(&transaction, &self.name).await?;
        let shown = shown.ok_or_else(|| StoreError::Schema("a name just set is not there".to_owned()))?;
        let event = json!({ "name": shown.name, "digest": shown.digest, "hosts": shown.hosts });
        outbox::push(&transaction, &subject::event("image", image, what), &event).await?;
        if !claim_holds_in_txn(&transaction, self.fence).await? {
            return Ok(None);
        }
        transaction.commit().await.map_err(StoreError::committing)?;
        Ok(Some(shown))
    }

    /// Takes the other name of a rename away; call it before [`Held::point`].
    ///
    /// # Errors
    /// The database could not.
    pub async fn leave(&self, from: &ImageName) -> Result<(), StoreError> {
        let delete = self.transaction.prepare_cached("delete from image.name where name = $1").await?;
        self.transaction.execute(&delete, &[&from.as_str()]).await?;
        Ok(())
    }

    /// The image, as an earlier try of the same step left it.
    ///
    /// # Errors
    /// The database could not.
    pub async fn published(self, id: ImageId) -> Result<Option<Image>, StoreError> {
        match image_named(&self.transaction, &self.name).await? {
            Some(image) => Ok(Some(image)),
            None => image_get(&self.transaction, id).await,
        }
    }
}

/// As [`name_return_in_txn`], in a transaction of its own; `false` when the claim is lost: then nothing was written.
///
/// # Errors
/// The database could not.
pub async fn name_return(client: &mut Client, name: &ImageName, fence: Fence) -> Result<bool, StoreError> {
    let transaction = client.transaction().await?;
    name_return_in_txn(&transaction, name, fence.operation).await?;
    fenced(transaction, fence).await
}

/// Gives a name that an operation changed back as it was, unless somebody has the old one by now: then the image keeps the new one;
/// `false` when the claim is lost: then nothing was written.
///
/// # Errors
/// The database could not.
pub async fn name_rename_back(
    client: &mut Client,
    from: &ImageName,
    to: &ImageName,
    fence: Fence,
) -> Result<bool, StoreError> {
    let transaction = client.transaction().await?;
    let sql = "update image.name set name = $1, set_by = null where name = $2 and set_by = $3 \
         and not exists (select from image.name where name = $1)";
    let back = transaction.prepare_cached(sql).await?;
    transaction.execute(&back, &[&from.as_str(), &to.as_str(), &fence.operation.0]).await?;
    fenced(transaction, fence).await
}

async fn fenced(transaction: Transaction<'_>, fence: Fence) -> Result<bool, StoreError> {
    if !claim_holds_in_txn(&transaction, fence).await? {
        return Ok(false);
    }
    transaction.commit().await.map_err(StoreError::committing)?;
    Ok(true)
}

/// Lets a name mean what it meant before this operation, where it means what that made of it; free if that is gone.
///
/// # Errors
/// The database could not.
pub async fn name_return_in_txn(
    transaction: &impl GenericClient,
    name: &ImageName,
    by: OperationId,
) -> Result<(), StoreError> {
    let back = transaction
        .prepare_cached(
            "update image.name n set image_id = n.was, source = n.was_source, set_by = null, was = null, was_source = null from image.image i \
             where n.name = $1 and n.set_by = $2 and i.id = n.was",
        )
        .await?;
    let free = transaction.prepare_cached("delete from image.name where name = $1 and set_by = $2").await?;
    transaction.execute(&back, &[&name.as_str(), &by.0]).await?;
    transaction.execute(&free, &[&name.as_str(), &by.0]).await?;
    Ok(())
}

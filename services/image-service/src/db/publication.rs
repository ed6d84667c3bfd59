//! The **publication**: the transaction in which a name begins or ceases to mean an image. Its claim is the row lock on the
//! name; the host-agent's rename happens while it is held.

use contract::{
    HostId, ImageId, ImageName,
    agent::{Fence, StagedImage},
    image::Image,
    subject,
};
use serde_json::json;
use store::{Client, GenericClient, StoreError, Transaction, outbox};
use uuid::Uuid;

use super::{
    claim_holds_in_txn,
    image::{image_get, image_insert_in_txn},
    removal::{Removal, removal_owe_in_txn},
    usage::{self, Users},
};

/// How long a transaction that holds a name may rest between two statements, as PostgreSQL takes it: twice
/// [`contract::deadline::PUBLISH`]. A worker that hangs with the lock in hand loses it then.
const IDLE_MAX: &str = "20s";

/// A name in one transaction's hands.
pub struct Held<'a> {
    transaction: Transaction<'a>,
    /// The image the name means already, if any.
    pub holder: Option<ImageId>,
}

/// Takes the row lock on a name, free or not; waits while another publication holds it.
///
/// # Errors
/// The database could not.
pub async fn name_hold<'a>(client: &'a mut Client, name: &ImageName, image: ImageId) -> Result<Held<'a>, StoreError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(&format!("set local idle_in_transaction_session_timeout = '{IDLE_MAX}'")).await?;
    let insert = transaction
        .prepare_cached("insert into image.name (name, image_id) values ($1, $2) on conflict (name) do nothing")
        .await?;
    let lock = transaction.prepare_cached("select image_id from image.name where name = $1 for update").await?;
    loop {
        // Waits for a transaction that inserted the name and has not ended.
        if transaction.execute(&insert, &[&name.as_str(), &image.0]).await? == 1 {
            return Ok(Held { transaction, holder: None });
        }
        // Between the two statements a delete may have removed the row: then the insert has its turn again.
        if let Some(row) = transaction.query_opt(&lock, &[&name.as_str()]).await? {
            return Ok(Held { transaction, holder: Some(ImageId(row.try_get(0)?)) });
        }
    }
}

impl Held<'_> {
    /// Makes the name mean the image, whose files stand at their final place; tells of it.
    ///
    /// # Errors
    /// The database could not. Nothing when the claim is lost: then nothing was written.
    pub async fn publish(
        self,
        fence: Fence,
        id: ImageId,
        source: &str,
        staged: &StagedImage,
        host: &HostId,
    ) -> Result<Option<Image>, StoreError> {
        let transaction = self.transaction;
        image_insert_in_txn(&transaction, id, source, staged, host).await?;
        let image = image_get(&transaction, id).await?;
        let image = image.ok_or_else(|| StoreError::Schema("an image just inserted is not there".to_owned()))?;
        let event = json!({ "name": image.name, "digest": image.digest, "hosts": image.hosts });
        outbox::push(&transaction, &subject::event("image", id, "published"), &event).await?;
        if !claim_holds_in_txn(&transaction, fence).await? {
            return Ok(None);
        }
        transaction.commit().await.map_err(StoreError::committing)?;
        Ok(Some(image))
    }

    /// The image the name means, when that is this one: published by an earlier try of the same step.
    ///
    /// # Errors
    /// The database could not.
    pub async fn published(self, id: ImageId) -> Result<Option<Image>, StoreError> {
        image_get(&self.transaction, id).await
    }
}

/// What became of an attempt to delete an image's rows.
#[derive(Debug)]
pub enum Withdrawn {
    /// They are gone, or were gone before; the files are owed.
    Done,
    /// VMs use it; nothing was changed.
    InUse(Users),
    /// Another worker has the operation; nothing was changed.
    ClaimLost,
}

/// Deletes an image's rows unless a VM uses it, and notes the files its hosts have to remove.
///
/// # Errors
/// The database could not.
pub async fn image_withdraw(client: &mut Client, fence: Fence, id: ImageId) -> Result<Withdrawn, StoreError> {
    match withdraw(client, fence, id).await {
        // A VM was reserved on it at this very moment. The transaction is rolled back.
        Err(StoreError::Constraint { name, .. }) if name == usage::VM_REPLICA => {
            Ok(Withdrawn::InUse(usage::image_users(client, id).await?))
        }
        outcome => outcome,
    }
}

async fn withdraw(client: &mut Client, fence: Fence, id: ImageId) -> Result<Withdrawn, StoreError> {
    let transaction = client.transaction().await?;
    let lock =
        transaction.prepare_cached("select name from image.name where image_id = $1 order by name for update").await?;
    let names = transaction.query(&lock, &[&id.0]).await?;
    let names = names.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
    let users = usage::image_users(&transaction, id).await?;
    if users.count > 0 {
        return Ok(Withdrawn::InUse(users));
    }
    let hosts = transaction.prepare_cached("delete from image.replica where image_id = $1 returning host_id").await?;
    for row in transaction.query(&hosts, &[&id.0]).await? {
        let host: HostId = super::parsed(&row, "host_id")?;
        removal_owe_in_txn(&transaction, &Removal { image: id, host, fence }).await?;
    }
    let delete = transaction.prepare_cached("delete from image.name where image_id = $1").await?;
    transaction.execute(&delete, &[&id.0]).await?;
    if let Some(digest) = image_delete_in_txn(&transaction, id.0).await? {
        let event = json!({ "name": names.first(), "digest": digest });
        outbox::push(&transaction, &subject::event("image", id, "deleted"), &event).await?;
    }
    if !claim_holds_in_txn(&transaction, fence).await? {
        return Ok(Withdrawn::ClaimLost);
    }
    transaction.commit().await.map_err(StoreError::committing)?;
    Ok(Withdrawn::Done)
}

async fn image_delete_in_txn(transaction: &impl GenericClient, id: Uuid) -> Result<Option<String>, StoreError> {
    let delete = transaction.prepare_cached("delete from image.image where id = $1 returning digest").await?;
    let row = transaction.query_opt(&delete, &[&id]).await?;
    row.map(|row| Ok(row.try_get(0)?)).transpose()
}

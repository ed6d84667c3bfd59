//! A **withdrawal**: the transaction in which a name ceases to mean an image, and with its last name the image goes.

use contract::{HostId, ImageId, ImageName, agent::Fence, subject};
use serde_json::json;
use store::{Client, GenericClient, StoreError, Transaction, outbox};
use uuid::Uuid;

use super::{
    claim_holds_in_txn,
    name::name_return_in_txn,
    removal::{Removal, removal_owe_in_txn},
    usage::{self, Users},
};

/// What is taken away.
#[derive(Clone, Copy, Debug)]
pub enum Taken<'a> {
    /// All its names.
    All,
    /// This name, where it means the image.
    Name(&'a ImageName),
    /// None: the image goes if it has none.
    Nothing,
    /// What this operation made of the name, which means again what it meant before.
    Made(&'a ImageName),
}

/// What became of an attempt to delete an image's rows.
#[derive(Debug)]
pub enum Withdrawn {
    /// They are gone, or were gone before; the files are owed.
    Done,
    /// The image has other names, and stays.
    Named,
    /// VMs use it; nothing was changed.
    InUse(Users),
    /// Another worker has the operation; nothing was changed.
    ClaimLost,
}

/// Takes names away and, when that were the last ones, deletes the image's rows and notes the files its hosts have to
/// remove; nothing at all when a VM uses an image that would be without a name.
///
/// # Errors
/// The database could not.
pub async fn image_withdraw(
    client: &mut Client,
    fence: Fence,
    id: ImageId,
    taken: Taken<'_>,
) -> Result<Withdrawn, StoreError> {
    match withdraw(client, fence, id, taken).await {
        // A VM was reserved on it at this very moment. The transaction is rolled back.
        Err(StoreError::Constraint { name, .. }) if name == usage::VM_REPLICA => {
            Ok(Withdrawn::InUse(usage::image_users(client, id).await?))
        }
        outcome => outcome,
    }
}

async fn withdraw(client: &mut Client, fence: Fence, id: ImageId, taken: Taken<'_>) -> Result<Withdrawn, StoreError> {
    let transaction = client.transaction().await?;
    let names = take_names(&transaction, fence, id, taken).await?;
    // Whoever gives it a name holds the row until that name is there.
    let lock = transaction.prepare_cached("select from image.image where id = $1 for update").await?;
    transaction.query_opt(&lock, &[&id.0]).await?;
    if let Taken::All = taken {
        let delete = transaction.prepare_cached("delete from image.name where image_id = $1").await?;
        transaction.execute(&delete, &[&id.0]).await?;
    }
    let left = transaction.prepare_cached("select name from image.name where image_id = $1 limit 1").await?;
    if transaction.query_opt(&left, &[&id.0]).await?.is_some() {
        if let Taken::Nothing = taken {
            return Ok(Withdrawn::Named);
        }
        let event = json!({ "names": names });
        outbox::push(&transaction, &subject::event("image", id, "untagged"), &event).await?;
        return ended(transaction, fence, Withdrawn::Named).await;
    }
    let users = usage::image_users(&transaction, id).await?;
    if users.count > 0 {
        return Ok(Withdrawn::InUse(users));
    }
    let hosts = transaction.prepare_cached("delete from image.replica where image_id = $1 returning host_id").await?;
    for row in transaction.query(&hosts, &[&id.0]).await? {
        let host: HostId = super::parsed(&row, "host_id")?;
        removal_owe_in_txn(&transaction, &Removal { image: id, host, fence }).await?;
    }
    if let Some(digest) = image_delete_in_txn(&transaction, id.0).await? {
        let event = json!({ "name": names.first(), "digest": digest });
        outbox::push(&transaction, &subject::event("image", id, "deleted"), &event).await?;
    }
    ended(transaction, fence, Withdrawn::Done).await
}

async fn ended(transaction: Transaction<'_>, fence: Fence, outcome: Withdrawn) -> Result<Withdrawn, StoreError> {
    if !claim_holds_in_txn(&transaction, fence).await? {
        return Ok(Withdrawn::ClaimLost);
    }
    transaction.commit().await.map_err(StoreError::committing)?;
    Ok(outcome)
}

/// Locks the names, in their order and before the image, and takes them away; answers with those that meant the image.
async fn take_names(
    transaction: &Transaction<'_>,
    fence: Fence,
    id: ImageId,
    taken: Taken<'_>,
) -> Result<Vec<String>, StoreError> {
    let one = match taken {
        Taken::Nothing => return Ok(Vec::new()),
        Taken::All => None,
        Taken::Name(name) | Taken::Made(name) => Some(name),
    };
    let lock = transaction
        .prepare_cached(
            "select name, image_id = $1 from image.name where image_id = $1 and $2::text is null or name = $2 \
             order by name for update",
        )
        .await?;
    let rows = transaction.query(&lock, &[&id.0, &one.map(ImageName::as_str)]).await?;
    let names = rows.iter().filter(|row| row.get(1)).map(|row| row.get(0)).collect();
    match taken {
        // After the image is locked.
        Taken::Nothing | Taken::All => {}
        Taken::Name(name) => {
            let delete = transaction.prepare_cached("delete from image.name where name = $1 and image_id = $2").await?;
            transaction.execute(&delete, &[&name.as_str(), &id.0]).await?;
        }
        Taken::Made(name) => {
            name_return_in_txn(transaction, name, fence.operation).await?;
            // Of an image made by an operation that took down no more than this.
            let delete = transaction
                .prepare_cached("delete from image.name where name = $1 and image_id = $2 and set_by is null")
                .await?;
            transaction.execute(&delete, &[&name.as_str(), &id.0]).await?;
        }
    }
    Ok(names)
}

async fn image_delete_in_txn(transaction: &impl GenericClient, id: Uuid) -> Result<Option<String>, StoreError> {
    let delete = transaction.prepare_cached("delete from image.image where id = $1 returning digest").await?;
    let row = transaction.query_opt(&delete, &[&id]).await?;
    row.map(|row| Ok(row.try_get(0)?)).transpose()
}

//! A **withdrawal**: the transaction in which a name ceases to mean a kernel, and with its last name the kernel goes.

use contract::{HostId, KernelId, KernelName, agent::Fence, subject};
use serde_json::json;
use store::{Client, StoreError, Transaction, outbox};

use super::{
    name::kernel_name_return_in_txn,
    removal::{Removal, removal_owe_in_txn},
    usage::{self, Users},
};
use crate::db::{claim_holds_in_txn, parsed};

/// What is taken away.
#[derive(Clone, Copy, Debug)]
pub enum Taken<'a> {
    /// All its names.
    All,
    /// This name, where it means the kernel.
    Name(&'a KernelName),
    /// None: the kernel goes if it has none.
    Nothing,
    /// What this operation made of the name, which means again what it meant before.
    Made(&'a KernelName),
}

/// What became of an attempt to delete a kernel's rows.
#[derive(Debug)]
pub enum Withdrawn {
    /// They are gone, or were gone before; the files are owed.
    Done,
    /// The kernel has other names, and stays.
    Named,
    /// It is used; nothing was changed.
    InUse(Users),
    /// Another worker has the operation; nothing was changed.
    ClaimLost,
}

/// Takes names away and, when that were the last ones, deletes the kernel's rows and notes the files its hosts have to remove; nothing at all
/// when somebody uses a kernel that would be without a name.
///
/// # Errors
/// The database could not.
pub async fn kernel_withdraw(
    client: &mut Client,
    fence: Fence,
    id: KernelId,
    taken: Taken<'_>,
) -> Result<Withdrawn, StoreError> {
    match withdraw(client, fence, id, taken).await {
        // Somebody began to use it at this very moment. The transaction is rolled back.
        Err(StoreError::Constraint { name, .. }) if usage::USES.contains(&name.as_str()) => {
            Ok(Withdrawn::InUse(usage::kernel_users(client, id).await?))
        }
        outcome => outcome,
    }
}

async fn withdraw(client: &mut Client, fence: Fence, id: KernelId, taken: Taken<'_>) -> Result<Withdrawn, StoreError> {
    let transaction = client.transaction().await?;
    let names = take_names(&transaction, fence, id, taken).await?;
    // Whoever gives it a name, or places it, holds the row until that is done.
    let lock = transaction.prepare_cached("select from image.kernel where id = $1 for update").await?;
    transaction.query_opt(&lock, &[&id.0]).await?;
    if let Taken::All = taken {
        let delete = transaction.prepare_cached("delete from image.kernel_name where kernel_id = $1").await?;
        transaction.execute(&delete, &[&id.0]).await?;
    }
    let left = transaction.prepare_cached("select from image.kernel_name where kernel_id = $1 limit 1").await?;
    if transaction.query_opt(&left, &[&id.0]).await?.is_some() {
        if let Taken::Nothing = taken {
            return Ok(Withdrawn::Named);
        }
        let event = json!({ "names": names });
        outbox::push(&transaction, &subject::event("kernel", id, "untagged"), &event).await?;
        return ended(transaction, fence, Withdrawn::Named).await;
    }
    let users = usage::kernel_users(&transaction, id).await?;
    if !users.none() {
        return Ok(Withdrawn::InUse(users));
    }
    let hosts =
        transaction.prepare_cached("delete from image.kernel_replica where kernel_id = $1 returning host_id").await?;
    for row in transaction.query(&hosts, &[&id.0]).await? {
        let host: HostId = parsed(&row, "host_id")?;
        removal_owe_in_txn(&transaction, &Removal { kernel: id, host, fence }).await?;
    }
    let delete = transaction.prepare_cached("delete from image.kernel where id = $1 returning digest, release").await?;
    if let Some(row) = transaction.query_opt(&delete, &[&id.0]).await? {
        let (digest, release): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let event = json!({ "name": names.first(), "digest": digest, "release": release });
        outbox::push(&transaction, &subject::event("kernel", id, "deleted"), &event).await?;
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

/// Locks the names, in their order and before the kernel, and takes them away; answers with those that meant the kernel.
async fn take_names(
    transaction: &Transaction<'_>,
    fence: Fence,
    id: KernelId,
    taken: Taken<'_>,
) -> Result<Vec<String>, StoreError> {
    let one = match taken {
        Taken::Nothing => return Ok(Vec::new()),
        Taken::All => None,
        Taken::Name(name) | Taken::Made(name) => Some(name),
    };
    let lock = transaction
        .prepare_cached(
            "select name, kernel_id = $1 from image.kernel_name \
             where kernel_id = $1 and $2::text is null or name = $2 order by name for update",
        )
        .await?;
    let rows = transaction.query(&lock, &[&id.0, &one.map(KernelName::as_str)]).await?;
    let names = rows.iter().filter(|row| row.get(1)).map(|row| row.get(0)).collect();
    match taken {
        // After the kernel is locked.
        Taken::Nothing | Taken::All => {}
        Taken::Name(name) => {
            let delete = "delete from image.kernel_name where name = $1 and kernel_id = $2";
            let delete = transaction.prepare_cached(delete).await?;
            transaction.execute(&delete, &[&name.as_str(), &id.0]).await?;
        }
        Taken::Made(name) => kernel_name_return_in_txn(transaction, name, fence.operation).await?,
    }
    Ok(names)
}

//! A **removal** is what a host owes after an image's rows are gone: its files.

use std::time::Duration;

use contract::{HostId, ImageId, OperationId, agent::Fence};
use store::{GenericClient, StoreError};
use tokio_postgres::Row;

use super::parsed;

/// How long only the delete itself tries: a little longer than [`crate::kinds::FILES_PATIENCE`]. That both try does no harm.
const RESERVED: Duration = Duration::from_secs(25);

/// How long a removal rests after a try that failed, counted from its end: a host that comes back is cleaned within this.
const REST: Duration = Duration::from_secs(10);

/// One image's files on one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The image.
    pub image: ImageId,
    /// The host.
    pub host: HostId,
    /// The claim that commands it.
    pub fence: Fence,
}

/// Notes that a host has to remove an image's files.
///
/// # Errors
/// The database could not.
pub async fn removal_owe_in_txn(transaction: &impl GenericClient, removal: &Removal) -> Result<(), StoreError> {
    let insert = transaction
        .prepare_cached(
            "insert into image.removal (image_id, host_id, operation_id, epoch, try_at) \
             values ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5)) \
             on conflict (image_id, host_id) do update set operation_id = excluded.operation_id, epoch = excluded.epoch",
        )
        .await?;
    let fence = removal.fence;
    let reserved = RESERVED.as_secs_f64();
    transaction
        .execute(&insert, &[&removal.image.0, &removal.host.as_str(), &fence.operation.0, &fence.epoch, &reserved])
        .await?;
    Ok(())
}

/// What hosts owe of one image.
///
/// # Errors
/// The database could not.
pub async fn removal_list(client: &impl GenericClient, image: ImageId) -> Result<Vec<Removal>, StoreError> {
    let statement = client
        .prepare_cached("select image_id, host_id, operation_id, epoch from image.removal where image_id = $1")
        .await?;
    client.query(&statement, &[&image.0]).await?.iter().map(read).collect()
}

/// What all hosts owe, and why they have not done it yet, where that is known.
///
/// # Errors
/// The database could not.
pub async fn removal_all(client: &impl GenericClient) -> Result<Vec<(Removal, Option<String>)>, StoreError> {
    let statement = client
        .prepare_cached(
            "select image_id, host_id, operation_id, epoch, reason from image.removal order by host_id, image_id",
        )
        .await?;
    let rows = client.query(&statement, &[]).await?;
    rows.iter().map(|row| Ok((read(row)?, row.try_get("reason")?))).collect()
}

/// Takes one removal whose turn has come, of none of the `busy` hosts; nobody else tries it for `hold`.
///
/// # Errors
/// The database could not.
pub async fn removal_take(
    client: &impl GenericClient,
    hold: Duration,
    busy: &[HostId],
) -> Result<Option<Removal>, StoreError> {
    let statement = client
        .prepare_cached(
            "update image.removal set try_at = clock_timestamp() + make_interval(secs => $1) \
             where (image_id, host_id) = (select image_id, host_id from image.removal \
                 where try_at <= clock_timestamp() and host_id <> all ($2) order by try_at limit 1 for update skip locked) \
             returning image_id, host_id, operation_id, epoch",
        )
        .await?;
    let busy: Vec<&str> = busy.iter().map(HostId::as_str).collect();
    client.query_opt(&statement, &[&hold.as_secs_f64(), &busy]).await?.as_ref().map(read).transpose()
}

/// The host has removed the files.
///
/// # Errors
/// The database could not.
pub async fn removal_done(client: &impl GenericClient, removal: &Removal) -> Result<(), StoreError> {
    let delete = client.prepare_cached("delete from image.removal where image_id = $1 and host_id = $2").await?;
    client.execute(&delete, &[&removal.image.0, &removal.host.as_str()]).await?;
    Ok(())
}

/// Notes why the host has not removed the files yet; they rest for [`REST`] now.
///
/// # Errors
/// The database could not.
pub async fn removal_failed(client: &impl GenericClient, removal: &Removal, reason: &str) -> Result<(), StoreError> {
    let update = client
        .prepare_cached(
            "update image.removal set reason = $3, try_at = clock_timestamp() + make_interval(secs => $4) \
             where image_id = $1 and host_id = $2",
        )
        .await?;
    let rest = REST.as_secs_f64();
    client.execute(&update, &[&removal.image.0, &removal.host.as_str(), &reason, &rest]).await?;
    Ok(())
}

fn read(row: &Row) -> Result<Removal, StoreError> {
    Ok(Removal {
        image: ImageId(row.try_get("image_id")?),
        host: parsed(row, "host_id")?,
        fence: Fence { operation: OperationId(row.try_get("operation_id")?), epoch: row.try_get("epoch")? },
    })
}

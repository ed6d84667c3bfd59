//! **Replicas** as the reconciler sees them: rows to be compared with a host's directories, and what it notes in them.

use contract::{HostId, ImageId, subject};
use serde_json::json;
use store::{Client, GenericClient, StoreError, outbox};
use time::OffsetDateTime;

use super::{parsed, usage::VM_REPLICA};

/// A row of a replica, of an image or of whatever else hosts keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica<I = ImageId> {
    /// The image.
    pub id: I,
    /// The host.
    pub host: HostId,
    /// Its digest.
    pub digest: String,
    /// Whether it is noted as missing.
    pub missing: bool,
    /// When it was made, or brought back: a note is only for the replica that was looked at.
    pub created_at: OffsetDateTime,
    /// How many VMs there build on it.
    pub vms: i64,
}

/// Every replica's row.
///
/// # Errors
/// The database could not.
pub async fn replica_list(client: &impl GenericClient) -> Result<Vec<Replica>, StoreError> {
    let statement = client
        .prepare_cached(
            "select r.image_id, r.host_id, i.digest, r.missing_at is not null as missing, r.created_at, \
                (select count(*) from vm.vm v where v.image_id = r.image_id and v.host_id = r.host_id) as vms \
             from image.replica r join image.image i on i.id = r.image_id order by r.host_id, r.image_id",
        )
        .await?;
    let rows = client.query(&statement, &[]).await?;
    rows.iter()
        .map(|row| {
            Ok(Replica {
                id: ImageId(row.try_get("image_id")?),
                host: parsed(row, "host_id")?,
                digest: row.try_get("digest")?,
                missing: row.try_get("missing")?,
                created_at: row.try_get("created_at")?,
                vms: row.try_get("vms")?,
            })
        })
        .collect()
}

/// Notes that the host lacks the image, or has it again, and tells of it; nothing when the replica is another by now, or
/// the note is there.
///
/// # Errors
/// The database could not.
pub async fn replica_note(client: &mut Client, replica: &Replica, missing: bool) -> Result<bool, StoreError> {
    let transaction = client.transaction().await?;
    let update = transaction
        .prepare_cached(
            "update image.replica set missing_at = case when $4 then clock_timestamp() end \
             where image_id = $1 and host_id = $2 and created_at = $3 and (missing_at is not null) <> $4",
        )
        .await?;
    let (host, created_at) = (replica.host.as_str(), replica.created_at);
    if transaction.execute(&update, &[&replica.id.0, &host, &created_at, &missing]).await? == 0 {
        return Ok(false);
    }
    let what = if missing { "missing" } else { "returned" };
    let event = json!({ "host": replica.host, "digest": replica.digest });
    outbox::push(&transaction, &subject::event("image", replica.id, what), &event).await?;
    transaction.commit().await.map_err(StoreError::committing)?;
    Ok(true)
}

/// Forgets a replica on a host that the lab does not have any more; `false` when a VM's
/// disk builds on it.
///
/// # Errors
/// The database could not.
pub async fn replica_forget(client: &mut Client, replica: &Replica) -> Result<bool, StoreError> {
    let transaction = client.transaction().await?;
    let delete = transaction.prepare_cached("delete from image.replica where image_id = $1 and host_id = $2").await?;
    match transaction.execute(&delete, &[&replica.id.0, &replica.host.as_str()]).await.map_err(StoreError::from) {
        Err(StoreError::Constraint { name, .. }) if name == VM_REPLICA => return Ok(false),
        done => done?,
    };
    transaction.commit().await.map_err(StoreError::committing)?;
    Ok(true)
}

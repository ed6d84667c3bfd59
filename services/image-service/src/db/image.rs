//! Images as rows, and as clients see them.

use contract::{
    HostId, ImageId, ImageName,
    agent::StagedImage,
    image::{Image, ImageConfig, ListRequest},
};
use serde_json::{Value, json};
use store::{GenericClient, StoreError};
use tokio_postgres::Row;
use uuid::Uuid;

use super::parsed;

/// The columns [`read`] reads.
const COLUMNS: &str = "i.id, n.name, i.digest, i.source, i.architecture, i.rootfs_bytes, i.config, i.created_at, \
     array(select r.host_id from image.replica r where r.image_id = i.id order by r.host_id) as hosts";
const TABLES: &str = "image.name n join image.image i on i.id = n.image_id";

/// The image of that name or id.
///
/// # Errors
/// The database could not.
pub async fn image_find(client: &impl GenericClient, name_or_id: &str) -> Result<Option<Image>, StoreError> {
    if let Ok(id) = Uuid::parse_str(name_or_id) {
        return image_get(client, ImageId(id)).await;
    }
    if name_or_id.parse::<ImageName>().is_err() {
        return Ok(None);
    }
    let statement = client.prepare_cached(&format!("select {COLUMNS} from {TABLES} where n.name = $1")).await?;
    client.query_opt(&statement, &[&name_or_id]).await?.as_ref().map(read).transpose()
}

/// The image of that id.
///
/// # Errors
/// The database could not.
pub async fn image_get(client: &impl GenericClient, id: ImageId) -> Result<Option<Image>, StoreError> {
    let statement = client.prepare_cached(&format!("select {COLUMNS} from {TABLES} where i.id = $1")).await?;
    client.query_opt(&statement, &[&id.0]).await?.as_ref().map(read).transpose()
}

/// A page of images by name, one more than asked for when there is more.
///
/// # Errors
/// The database could not.
pub async fn image_list(client: &impl GenericClient, page: &ListRequest) -> Result<Vec<Image>, StoreError> {
    let sql = format!("select {COLUMNS} from {TABLES} where $1::text is null or n.name > $1 order by n.name limit $2");
    let statement = client.prepare_cached(&sql).await?;
    let after = page.after.as_ref().map(ImageName::as_str);
    let rows = client.query(&statement, &[&after, &(i64::from(page.limit) + 1)]).await?;
    rows.iter().map(read).collect()
}

/// The image a name means now, with its source: who asks for a taken name is told.
///
/// # Errors
/// The database could not.
pub async fn name_holder(
    client: &impl GenericClient,
    name: &ImageName,
) -> Result<Option<(ImageId, String)>, StoreError> {
    let statement = client.prepare_cached(&format!("select i.id, i.source from {TABLES} where n.name = $1")).await?;
    let row = client.query_opt(&statement, &[&name.as_str()]).await?;
    row.map(|row| Ok((ImageId(row.try_get("id")?), row.try_get("source")?))).transpose()
}

/// Inserts an image and its first replica.
///
/// # Errors
/// The database could not.
pub async fn image_insert_in_txn(
    transaction: &impl GenericClient,
    id: ImageId,
    source: &str,
    staged: &StagedImage,
    host: &HostId,
) -> Result<(), StoreError> {
    let bytes = i64::try_from(staged.rootfs_bytes)
        .map_err(|_| StoreError::Schema(format!("no root filesystem has {} bytes", staged.rootfs_bytes)))?;
    let insert = transaction
        .prepare_cached(
            "with i as (insert into image.image (id, digest, source, architecture, rootfs_bytes, config) \
                 values ($1, $2, $3, $4, $5, $6)) \
             insert into image.replica (image_id, host_id) values ($1, $7)",
        )
        .await?;
    let config = json!(staged.config);
    transaction
        .execute(&insert, &[&id.0, &staged.digest, &source, &staged.architecture, &bytes, &config, &host.as_str()])
        .await?;
    Ok(())
}

fn read(row: &Row) -> Result<Image, StoreError> {
    let bytes: i64 = row.try_get("rootfs_bytes")?;
    let config: ImageConfig = serde_json::from_value(row.try_get::<_, Value>("config")?)
        .map_err(|error| StoreError::Schema(format!("column config cannot be read: {error}")))?;
    let hosts: Vec<String> = row.try_get("hosts")?;
    let hosts = hosts.iter().map(|host| {
        host.parse::<HostId>().map_err(|error| StoreError::Schema(format!("column host_id holds {host:?}: {error}")))
    });
    Ok(Image {
        id: ImageId(row.try_get("id")?),
        name: parsed(row, "name")?,
        digest: row.try_get("digest")?,
        source: row.try_get("source")?,
        architecture: row.try_get("architecture")?,
        rootfs_bytes: bytes.unsigned_abs(),
        config,
        hosts: hosts.collect::<Result<_, _>>()?,
        created_at: row.try_get("created_at")?,
    })
}

//! Images as rows, and as clients see them.

use contract::{
    HostId, ImageId, ImageName, KernelId,
    image::{Image, ImageConfig, ListRequest},
};
use serde_json::Value;
use store::{GenericClient, StoreError};
use tokio_postgres::Row;

use super::parsed;
use crate::domain::reference::Prefix;

/// The columns [`read`] reads, without the name and the source.
const COLUMNS: &str = "i.id, i.digest, i.architecture, i.rootfs_bytes, i.config, i.created_at, i.unnamed_at, \
     (select jsonb_build_object('id', k.id, 'digest', k.digest, 'release', k.release) from image.kernel k \
        where k.id = i.kernel_id) as kernel, \
     array(select m.name from image.name m where m.image_id = i.id order by m.name) as names, \
     array(select r.host_id from image.replica r where r.image_id = i.id and r.missing_at is null order by r.host_id) as hosts, \
     array(select r.host_id from image.replica r where r.image_id = i.id and r.missing_at is not null order by r.host_id) as missing";

/// How an image is called that was not asked for by name: by its first name, or by the first digits of its digest, which
/// find it too. Its source is what it was first made from.
const CALLED: &str = "coalesce((select min(m.name) from image.name m where m.image_id = i.id), substr(i.digest, 8, 12)) as name, i.source";

/// The source of what is called by a name `n`: the name's own.
const SOURCE: &str = "coalesce(n.source, i.source) as source";

/// The image of that name.
///
/// # Errors
/// The database could not.
pub async fn image_named(client: &impl GenericClient, name: &ImageName) -> Result<Option<Image>, StoreError> {
    let sql = format!(
        "select n.name, {SOURCE}, {COLUMNS} from image.name n join image.image i on i.id = n.image_id where n.name = $1"
    );
    let statement = client.prepare_cached(&sql).await?;
    client.query_opt(&statement, &[&name.as_str()]).await?.as_ref().map(read).transpose()
}

/// The images whose id or digest begins like that, up to three; of those with one digest the first.
///
/// # Errors
/// The database could not.
pub async fn image_begins(client: &impl GenericClient, prefix: &Prefix) -> Result<Vec<Image>, StoreError> {
    let sql = format!(
        "select {CALLED}, {COLUMNS} from image.image i \
         where i.digest like 'sha256:' || $1 || '%' or i.id::text like $2 || '%' order by i.digest, i.twin, i.id limit 3"
    );
    let statement = client.prepare_cached(&sql).await?;
    let rows = client.query(&statement, &[&prefix.digest, &prefix.id]).await?;
    rows.iter().map(read).collect()
}

/// The image of that id.
///
/// # Errors
/// The database could not.
pub async fn image_get(client: &impl GenericClient, id: ImageId) -> Result<Option<Image>, StoreError> {
    let sql = format!("select {CALLED}, {COLUMNS} from image.image i where i.id = $1");
    let statement = client.prepare_cached(&sql).await?;
    client.query_opt(&statement, &[&id.0]).await?.as_ref().map(read).transpose()
}

/// The image of that digest, and the hosts that hold it whole.
///
/// # Errors
/// The database could not.
pub async fn image_of_digest(
    client: &impl GenericClient,
    digest: &str,
) -> Result<Option<(ImageId, Vec<HostId>)>, StoreError> {
    let sql = format!("select {CALLED}, {COLUMNS} from image.image i where i.digest = $1 and not i.twin");
    let statement = client.prepare_cached(&sql).await?;
    let image = client.query_opt(&statement, &[&digest]).await?.as_ref().map(read).transpose()?;
    Ok(image.map(|image| (image.id, image.hosts)))
}

/// A page of images by name, one more than asked for when there is more.
///
/// # Errors
/// The database could not.
pub async fn image_list(client: &impl GenericClient, page: &ListRequest) -> Result<Vec<Image>, StoreError> {
    // One row a name; images without one are called as [`CALLED`] says.
    let sql = format!(
        "select c.name, {SOURCE}, {COLUMNS} from image.image i \
         left join image.name n on n.image_id = i.id \
         cross join lateral (select coalesce(n.name, substr(i.digest, 8, 12)) as name) c \
         where ($1::text is null or c.name > $1) and ($3 or n.name is not null) order by c.name limit $2"
    );
    let statement = client.prepare_cached(&sql).await?;
    let after = page.after.as_ref().map(ImageName::as_str);
    let rows = client.query(&statement, &[&after, &(i64::from(page.limit) + 1), &page.all]).await?;
    rows.iter().map(read).collect()
}

/// The foreign key from an image to its kernel (migrations/V0013__kernel.sql).
pub const IMAGE_KERNEL: &str = "image_kernel";

/// Lets an image name another kernel, or none.
///
/// # Errors
/// The database could not; the constraint [`IMAGE_KERNEL`] where there is no such kernel.
pub async fn image_set_kernel(
    client: &impl GenericClient,
    image: ImageId,
    kernel: Option<KernelId>,
) -> Result<(), StoreError> {
    let statement = client.prepare_cached("update image.image set kernel_id = $2 where id = $1").await?;
    client.execute(&statement, &[&image.0, &kernel.map(|kernel| kernel.0)]).await?;
    Ok(())
}

fn read(row: &Row) -> Result<Image, StoreError> {
    let bytes: i64 = row.try_get("rootfs_bytes")?;
    let config: ImageConfig = serde_json::from_value(row.try_get::<_, Value>("config")?)
        .map_err(|error| StoreError::Schema(format!("column config cannot be read: {error}")))?;
    let kernel = row.try_get::<_, Option<Value>>("kernel")?.map(serde_json::from_value).transpose();
    let kernel = kernel.map_err(|error| StoreError::Schema(format!("an image's kernel: {error}")))?;
    let names: Vec<String> = row.try_get("names")?;
    // The note may be older than the name.
    let unnamed = names.is_empty();
    let names = names.iter().map(|name| {
        name.parse().map_err(|error| StoreError::Schema(format!("a name of an image is {name:?}: {error}")))
    });
    let hosts = |column| -> Result<Vec<HostId>, StoreError> {
        let hosts: Vec<String> = row.try_get(column)?;
        let parsed = |host: &String| {
            host.parse().map_err(|error| StoreError::Schema(format!("column host_id holds {host:?}: {error}")))
        };
        hosts.iter().map(parsed).collect()
    };
    Ok(Image {
        id: ImageId(row.try_get("id")?),
        name: parsed(row, "name")?,
        names: names.collect::<Result<_, _>>()?,
        digest: row.try_get("digest")?,
        source: row.try_get("source")?,
        architecture: row.try_get("architecture")?,
        rootfs_bytes: bytes.unsigned_abs(),
        config,
        kernel,
        hosts: hosts("hosts")?,
        missing: hosts("missing")?,
        unnamed_at: row.try_get::<_, Option<_>>("unnamed_at")?.filter(|_| unnamed),
        created_at: row.try_get("created_at")?,
    })
}

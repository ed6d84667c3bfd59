//! **Unnamed** images: those whose last name went to another image. Since when is noted when it is seen.

use std::time::Duration;

use contract::ImageId;
use store::{GenericClient, StoreError};

/// The most unnamed images removed in one round.
const BATCH: i64 = 50;

/// How many times as long the image of a build's step stays after it was last used: builds are repeated after days.
const CACHED_AGES: f64 = 7.0;

/// Notes which images have no name now, and which have one again.
///
/// # Errors
/// The database could not.
pub async fn unnamed_note(client: &impl GenericClient) -> Result<(), StoreError> {
    // Rows that somebody holds are looked at the next time: what becomes of them is being decided.
    let named = client
        .prepare_cached(
            "update image.image set unnamed_at = null where id in (select i.id from image.image i \
                where i.unnamed_at is not null and exists (select from image.name n where n.image_id = i.id) \
                for no key update skip locked)",
        )
        .await?;
    let unnamed = client
        .prepare_cached(
            "update image.image set unnamed_at = clock_timestamp() where id in (select i.id from image.image i \
                where i.unnamed_at is null and not exists (select from image.name n where n.image_id = i.id) \
                for no key update skip locked)",
        )
        .await?;
    client.execute(&named, &[]).await?;
    client.execute(&unnamed, &[]).await?;
    Ok(())
}

/// An image without a name that may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unnamed {
    /// The image.
    pub image: ImageId,
    /// Size of its root filesystem, in bytes.
    pub rootfs_bytes: u64,
}

/// Images that have had no name for that long, that no VM uses and nothing is under way with; and how many more wait for
/// their turn.
///
/// # Errors
/// The database could not.
pub async fn unnamed_list(client: &impl GenericClient, age: Duration) -> Result<(Vec<Unnamed>, u64), StoreError> {
    let statement = client
        .prepare_cached(
            "select i.id, i.rootfs_bytes, count(*) over () as count from image.image i \
             where i.unnamed_at <= clock_timestamp() - make_interval(secs => $1) \
                and not exists (select from image.name n where n.image_id = i.id) \
                and not exists (select from vm.vm v where v.image_id = i.id) \
                and not exists (select from image.build_cache c where c.image_id = i.id \
                    and c.used_at > clock_timestamp() - $3 * make_interval(secs => $1)) \
                and not exists (select from operations.operation o \
                    where o.resource = 'image:' || i.id and o.state in ('queued', 'running')) \
             order by i.unnamed_at limit $2",
        )
        .await?;
    let rows = client.query(&statement, &[&age.as_secs_f64(), &BATCH, &CACHED_AGES]).await?;
    let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get("count"))?;
    let images = rows.iter().map(|row| {
        let bytes: i64 = row.try_get("rootfs_bytes")?;
        Ok(Unnamed { image: ImageId(row.try_get("id")?), rootfs_bytes: bytes.unsigned_abs() })
    });
    let images = images.collect::<Result<Vec<_>, StoreError>>()?;
    let more = count.unsigned_abs().saturating_sub(images.len() as u64);
    Ok((images, more))
}

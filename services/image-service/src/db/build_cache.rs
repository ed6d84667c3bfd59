//! The **cache** of builds: the image that a step gave, by what it was made of.

use contract::{ImageId, ImageName, subject};
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::{GenericClient, StoreError, outbox};

use super::{claim_holds_in_txn, name::Held};

/// An image that a step gave before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hit {
    /// The image.
    pub image: ImageId,
    /// Its digest.
    pub digest: String,
}

/// The image that a step of this key gave, if a host has it still; it counts as used now.
///
/// # Errors
/// The database could not.
pub async fn cache_use(client: &impl GenericClient, key: &str) -> Result<Option<Hit>, StoreError> {
    let statement = client
        .prepare_cached(
            "update image.build_cache c set used_at = clock_timestamp() from image.image i \
             where c.key = $1 and i.id = c.image_id and exists (select from image.replica r \
                where r.image_id = i.id and r.missing_at is null) returning i.id, i.digest",
        )
        .await?;
    let row = client.query_opt(&statement, &[&key]).await?;
    row.map(|row| Ok(Hit { image: ImageId(row.try_get(0)?), digest: row.try_get(1)? })).transpose()
}

impl Held<'_> {
    /// Takes down what a step of this key gave, in place of what one gave before, and commits. The image is there, and needs no name:
    /// `own` is the one that was only held, and is given up.
    ///
    /// # Errors
    /// The database could not. Nothing when the claim is lost: then nothing was written.
    pub async fn remember(self, key: &str, image: ImageId, own: Option<&ImageName>) -> Result<Option<Hit>, StoreError> {
        if let Some(name) = own {
            self.leave(name).await?;
        }
        let (transaction, fence) = (self.transaction, self.fence);
        let put = transaction
            .prepare_cached(
                "insert into image.build_cache (key, image_id) values ($1, $2) \
                 on conflict (key) do update set image_id = excluded.image_id, used_at = clock_timestamp()",
            )
            .await?;
        transaction.execute(&put, &[&key, &image.0]).await?;
        let shown = transaction.prepare_cached("select digest from image.image where id = $1").await?;
        let digest: String = transaction.query_one(&shown, &[&image.0]).await?.try_get(0)?;
        let event = json!({ "digest": digest, "key": key });
        outbox::push(&transaction, &subject::event("image", image, "built"), &event).await?;
        if !claim_holds_in_txn(&transaction, fence).await? {
            return Ok(None);
        }
        transaction.commit().await.map_err(StoreError::committing)?;
        Ok(Some(Hit { image, digest }))
    }
}

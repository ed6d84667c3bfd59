//! The **stock**: how many images and kernels there are, and on how many hosts.

use store::{GenericClient, StoreError};

/// How many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stock {
    /// Images.
    pub images: u64,
    /// Those without a name.
    pub unnamed: u64,
    /// Images on hosts.
    pub replicas: u64,
    /// Those that their hosts lack.
    pub missing: u64,
    /// Kernels.
    pub kernels: u64,
    /// Kernels on hosts.
    pub kernel_replicas: u64,
    /// Those that their hosts lack.
    pub kernels_missing: u64,
}

/// Counts.
///
/// # Errors
/// The database could not.
pub async fn stock(client: &impl GenericClient) -> Result<Stock, StoreError> {
    let statement = client
        .prepare_cached(
            "select (select count(*) from image.image) as images, \
                (select count(*) from image.image i \
                    where not exists (select from image.name n where n.image_id = i.id)) as unnamed, \
                (select count(*) from image.replica) as replicas, \
                (select count(*) from image.replica where missing_at is not null) as missing, \
                (select count(*) from image.kernel) as kernels, \
                (select count(*) from image.kernel_replica) as kernel_replicas, \
                (select count(*) from image.kernel_replica where missing_at is not null) as kernels_missing",
        )
        .await?;
    let row = client.query_one(&statement, &[]).await?;
    let count = |column: &str| row.try_get::<_, i64>(column).map(i64::unsigned_abs);
    Ok(Stock {
        images: count("images")?,
        unnamed: count("unnamed")?,
        replicas: count("replicas")?,
        missing: count("missing")?,
        kernels: count("kernels")?,
        kernel_replicas: count("kernel_replicas")?,
        kernels_missing: count("kernels_missing")?,
    })
}

//! Who uses an image: read from `vm.vm`, which vm-lifecycle writes. The foreign key `vm_replica` is what enforces that
//! an image in use stays; this tells its users' names.

use contract::ImageId;
use store::{GenericClient, StoreError};

/// The foreign key from a VM to the replica its disk is a clone of (migrations/V0003__vm.sql).
pub const VM_REPLICA: &str = "vm_replica";

/// How many users are named at the most.
const NAMED_MAX: i64 = 20;

/// The VMs that use an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Users {
    /// How many there are.
    pub count: u64,
    /// The first of their names.
    pub names: Vec<String>,
}

/// The VMs that use an image on a host.
///
/// # Errors
/// The database could not.
pub async fn replica_users(client: &impl GenericClient, id: ImageId, host: &str) -> Result<Users, StoreError> {
    users(client, id, Some(host)).await
}

/// The VMs that use an image.
///
/// # Errors
/// The database could not.
pub async fn image_users(client: &impl GenericClient, id: ImageId) -> Result<Users, StoreError> {
    users(client, id, None).await
}

async fn users(client: &impl GenericClient, id: ImageId, host: Option<&str>) -> Result<Users, StoreError> {
    let statement = client
        .prepare_cached(
            "select count(*) over () as count, name from vm.vm \
             where image_id = $1 and ($3::text is null or host_id = $3) order by name limit $2",
        )
        .await?;
    let rows = client.query(&statement, &[&id.0, &NAMED_MAX, &host]).await?;
    let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get("count"))?;
    let names = rows.iter().map(|row| row.try_get("name")).collect::<Result<_, _>>()?;
    Ok(Users { count: count.unsigned_abs(), names })
}

//! Who uses a kernel: VMs that were made with it, images that name it, and the lab where it is the default. Foreign keys are what enforces
//! that it stays; this tells the users' names.

use contract::KernelId;
use store::{GenericClient, StoreError};

use super::choice::KERNEL_DEFAULT;

/// The foreign keys of those who use a kernel (migrations/V0013__kernel.sql).
pub const USES: [&str; 3] = ["vm_kernel", "image_kernel", KERNEL_DEFAULT];

/// How many users of a sort are named at the most.
const NAMED_MAX: i64 = 20;

/// Who uses a kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// The names of VMs; the first ones.
    pub vms: Vec<String>,
    /// The names of images, or the beginnings of their digests; the first ones.
    pub images: Vec<String>,
    /// Whether it is the lab's default.
    pub default: bool,
}

impl Users {
    /// Whether there is none.
    pub fn none(&self) -> bool {
        self.vms.is_empty() && self.images.is_empty() && !self.default
    }
}

/// Who uses a kernel.
///
/// # Errors
/// The database could not.
pub async fn kernel_users(client: &impl GenericClient, id: KernelId) -> Result<Users, StoreError> {
    let vms = client.prepare_cached("select name from vm.vm where kernel_id = $1 order by name limit $2").await?;
    let images = client
        .prepare_cached(
            "select coalesce((select min(n.name) from image.name n where n.image_id = i.id), substr(i.digest, 8, 12)) \
             from image.image i where i.kernel_id = $1 order by 1 limit $2",
        )
        .await?;
    let default = client.prepare_cached("select from image.kernel_default where kernel_id = $1").await?;
    let names = |rows: Vec<tokio_postgres::Row>| rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<_>, _>>();
    Ok(Users {
        vms: names(client.query(&vms, &[&id.0, &NAMED_MAX]).await?)?,
        images: names(client.query(&images, &[&id.0, &NAMED_MAX]).await?)?,
        default: client.query_opt(&default, &[&id.0]).await?.is_some(),
    })
}

//! A **choice**: the kernel of VMs that ask for none: their image's, or the lab's default.

use contract::{ImageId, KernelId, kernel::Kernel};
use store::{GenericClient, StoreError};

use super::{CALLED, COLUMNS, read};

/// The foreign key from the default to its kernel.
pub const KERNEL_DEFAULT: &str = "kernel_default_kernel";

/// The image's kernel, or the lab's default; neither, where the host's own is booted.
///
/// # Errors
/// The database could not.
pub async fn kernel_chosen(client: &impl GenericClient, image: ImageId) -> Result<Option<Kernel>, StoreError> {
    let sql = format!(
        "select {CALLED}, {COLUMNS} from image.kernel k where k.id = coalesce( \
         (select i.kernel_id from image.image i where i.id = $1), (select d.kernel_id from image.kernel_default d))"
    );
    let statement = client.prepare_cached(&sql).await?;
    client.query_opt(&statement, &[&image.0]).await?.as_ref().map(read).transpose()
}

/// Sets the lab's default, or takes it away.
///
/// # Errors
/// The database could not; [`KERNEL_DEFAULT`] when the kernel is there no more.
pub async fn kernel_set_default(client: &impl GenericClient, kernel: Option<KernelId>) -> Result<(), StoreError> {
    let Some(kernel) = kernel else {
        client.execute("delete from image.kernel_default", &[]).await?;
        return Ok(());
    };
    let set = "insert into image.kernel_default (kernel_id) values ($1) on conflict (one) do update set kernel_id = $1";
    let statement = client.prepare_cached(set).await?;
    client.execute(&statement, &[&kernel.0]).await?;
    Ok(())
}

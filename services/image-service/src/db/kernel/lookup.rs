//! A **lookup**: the kernel a request means, and all of them.

use contract::{ApiError, KernelId, KernelName, kernel::Kernel};
use serde_json::json;
use store::{GenericClient, StoreError};

use super::{CALLED, COLUMNS, read};
use crate::domain::reference::{self, Prefix};

/// A kernel, and how it was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The kernel.
    pub kernel: Kernel,
    /// Whether it was called by its name.
    pub by_name: bool,
}

/// The kernel a reference means; a name comes before what begins an id or a digest.
///
/// # Errors
/// `invalid_argument` when several begin like that, or the database could not.
pub async fn kernel_find(client: &impl GenericClient, reference: &str) -> Result<Option<Found>, ApiError> {
    if let Ok(name) = reference.parse::<KernelName>()
        && let Some(kernel) = kernel_named(client, &name).await?
    {
        return Ok(Some(Found { kernel, by_name: true }));
    }
    let Some(prefix) = reference::prefix(reference) else { return Ok(None) };
    let mut kernels = kernel_begins(client, &prefix).await?;
    match kernels.len() {
        0 => Ok(None),
        1 => Ok(kernels.pop().map(|kernel| Found { kernel, by_name: false })),
        _ => {
            let all: Vec<_> = kernels.iter().map(|kernel| format!("{} ({})", kernel.digest, kernel.id)).collect();
            Err(ApiError::invalid_argument(format!("several kernels begin with {reference}: {}", all.join(", ")))
                .hint("give more digits")
                .details(json!({ "kernels": kernels.iter().map(|kernel| kernel.id).collect::<Vec<_>>() })))
        }
    }
}

/// The kernel of that name.
///
/// # Errors
/// The database could not.
pub async fn kernel_named(client: &impl GenericClient, name: &KernelName) -> Result<Option<Kernel>, StoreError> {
    let sql = format!(
        "select n.name, {COLUMNS} from image.kernel_name n join image.kernel k on k.id = n.kernel_id where n.name = $1"
    );
    let statement = client.prepare_cached(&sql).await?;
    client.query_opt(&statement, &[&name.as_str()]).await?.as_ref().map(read).transpose()
}

/// The kernel of that id.
///
/// # Errors
/// The database could not.
pub async fn kernel_get(client: &impl GenericClient, id: KernelId) -> Result<Option<Kernel>, StoreError> {
    let sql = format!("select {CALLED}, {COLUMNS} from image.kernel k where k.id = $1");
    let statement = client.prepare_cached(&sql).await?;
    client.query_opt(&statement, &[&id.0]).await?.as_ref().map(read).transpose()
}

/// The kernels whose id or digest begins like that, up to three.
async fn kernel_begins(client: &impl GenericClient, prefix: &Prefix) -> Result<Vec<Kernel>, StoreError> {
    let sql = format!(
        "select {CALLED}, {COLUMNS} from image.kernel k \
         where k.digest like 'sha256:' || $1 || '%' or k.id::text like $2 || '%' order by k.digest, k.id limit 3"
    );
    let statement = client.prepare_cached(&sql).await?;
    client.query(&statement, &[&prefix.digest, &prefix.id]).await?.iter().map(read).collect()
}

/// All kernels, by name; those without one are called as [`CALLED`] says.
///
/// # Errors
/// The database could not.
pub async fn kernel_list(client: &impl GenericClient) -> Result<Vec<Kernel>, StoreError> {
    let sql = format!(
        "select coalesce(n.name, substr(k.digest, 8, 12)) as name, {COLUMNS} from image.kernel k \
         left join image.kernel_name n on n.kernel_id = k.id order by 1"
    );
    let statement = client.prepare_cached(&sql).await?;
    client.query(&statement, &[]).await?.iter().map(read).collect()
}

//! **Unused** kernels: those that came along with an image, that nobody ever gave a name, and that no VM, no image and no default refers to any
//! more. Since when is noted when it is seen.

use std::time::Duration;

use contract::KernelId;
use store::{GenericClient, StoreError};

/// The most unused kernels removed in one round.
const BATCH: i64 = 50;

/// What makes a kernel one of them.
const UNUSED: &str = "k.along and not exists (select from image.kernel_name n where n.kernel_id = k.id) \
     and not exists (select from image.image i where i.kernel_id = k.id) \
     and not exists (select from vm.vm v where v.kernel_id = k.id) \
     and not exists (select from image.kernel_default d where d.kernel_id = k.id)";

/// A kernel that may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unused {
    /// The kernel.
    pub kernel: KernelId,
    /// Size of its files, in bytes.
    pub bytes: u64,
}

/// Notes which kernels are unused now, and which are used again.
///
/// # Errors
/// The database could not.
pub async fn kernel_unused_note(client: &impl GenericClient) -> Result<(), StoreError> {
    // Rows that somebody holds are looked at the next time: what becomes of them is being decided.
    for (was, now, set) in
        [("is not null", format!("not ({UNUSED})"), "null"), ("is null", UNUSED.to_owned(), "clock_timestamp()")]
    {
        let note = format!(
            "update image.kernel set unused_at = {set} where id in (select k.id from image.kernel k \
                where k.unused_at {was} and ({now}) for no key update skip locked)"
        );
        client.execute(&client.prepare_cached(&note).await?, &[]).await?;
    }
    Ok(())
}

/// Kernels that have been unused for that long, and nothing is under way with.
///
/// # Errors
/// The database could not.
pub async fn kernel_unused_list(client: &impl GenericClient, age: Duration) -> Result<Vec<Unused>, StoreError> {
    let sql = format!(
        "select k.id, k.bytes from image.kernel k \
         where k.unused_at <= clock_timestamp() - make_interval(secs => $1) and {UNUSED} \
            and not exists (select from operations.operation o \
                where o.resource = 'kernel:' || k.id and o.state in ('queued', 'running')) \
         order by k.unused_at limit $2"
    );
    let statement = client.prepare_cached(&sql).await?;
    let rows = client.query(&statement, &[&age.as_secs_f64(), &BATCH]).await?;
    rows.iter()
        .map(|row| {
            let bytes: i64 = row.try_get("bytes")?;
            Ok(Unused { kernel: KernelId(row.try_get("id")?), bytes: bytes.unsigned_abs() })
        })
        .collect()
}

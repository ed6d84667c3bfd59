//! Kernels as rows, and as clients see them (migrations/V0013__kernel.sql): one file a noun.

pub mod arrival;
pub mod choice;
pub mod lookup;
pub mod name;
pub mod removal;
pub mod replica;
pub mod unused;
pub mod usage;
pub mod withdrawal;

use contract::{HostId, KernelId, KernelName, kernel::Kernel};
use store::StoreError;
use tokio_postgres::Row;

use super::parsed;

/// The columns [`read`] reads, without the name.
const COLUMNS: &str = "k.id, k.digest, k.release, k.architecture, k.bytes, k.source, k.created_at, \
     array(select m.name from image.kernel_name m where m.kernel_id = k.id order by m.name) as names, \
     array(select r.host_id from image.kernel_replica r where r.kernel_id = k.id and r.missing_at is null order by r.host_id) as hosts, \
     array(select r.host_id from image.kernel_replica r where r.kernel_id = k.id and r.missing_at is not null order by r.host_id) as missing, \
     exists (select from image.kernel_default d where d.kernel_id = k.id) as is_default, \
     (select count(*) from vm.vm v where v.kernel_id = k.id) as vms, \
     (select count(*) from image.image i where i.kernel_id = k.id) as images";

/// How a kernel is called that was not asked for by name: by its first name, or by the first digits of its digest, which find it too.
const CALLED: &str =
    "coalesce((select min(m.name) from image.kernel_name m where m.kernel_id = k.id), substr(k.digest, 8, 12)) as name";

fn read(row: &Row) -> Result<Kernel, StoreError> {
    let texts = |column: &str| row.try_get::<_, Vec<String>>(column);
    let names = texts("names")?.into_iter().map(|name| {
        name.parse::<KernelName>().map_err(|error| StoreError::Schema(format!("a kernel is called {name:?}: {error}")))
    });
    let hosts = |column: &str| -> Result<Vec<HostId>, StoreError> {
        let parsed = |host: String| {
            host.parse().map_err(|error| StoreError::Schema(format!("column host_id holds {host:?}: {error}")))
        };
        texts(column)?.into_iter().map(parsed).collect()
    };
    let number = |column: &str| row.try_get::<_, i64>(column).map(i64::unsigned_abs);
    Ok(Kernel {
        id: KernelId(row.try_get("id")?),
        name: parsed(row, "name")?,
        names: names.collect::<Result<_, _>>()?,
        digest: row.try_get("digest")?,
        release: row.try_get("release")?,
        architecture: row.try_get("architecture")?,
        bytes: number("bytes")?,
        source: row.try_get("source")?,
        default: row.try_get("is_default")?,
        hosts: hosts("hosts")?,
        missing: hosts("missing")?,
        vms: number("vms")?,
        images: number("images")?,
        created_at: row.try_get("created_at")?,
    })
}

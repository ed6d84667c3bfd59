//! Rows of `vm.disk`: data disks that outlive their VMs.

use std::collections::HashMap;

use contract::{HostId, MebiBytes, VmName, vm::KeptDisk};
use store::{GenericClient, StoreError};

use super::{number, parsed};

/// The host of the first of these disks that is there.
///
/// # Errors
/// The database could not.
pub async fn disk_host(client: &impl GenericClient, names: &[&str]) -> Result<Option<HostId>, StoreError> {
    let statement =
        client.prepare_cached("select host_id from vm.disk where name = any($1) order by name limit 1").await?;
    let row = client.query_opt(&statement, &[&names]).await?;
    row.map(|row| parsed(&row, "host_id")).transpose()
}

/// The sizes in MiB of those of these disks that are there.
///
/// # Errors
/// The database could not.
pub async fn disk_sizes(client: &impl GenericClient, names: &[&str]) -> Result<HashMap<String, u32>, StoreError> {
    let statement = client.prepare_cached("select name, size_mib from vm.disk where name = any($1)").await?;
    let rows = client.query(&statement, &[&names]).await?;
    rows.iter().map(|row| Ok((row.try_get("name")?, number(row, "size_mib")?))).collect()
}

/// All kept disks by name.
///
/// # Errors
/// The database could not.
pub async fn disk_list(client: &impl GenericClient) -> Result<Vec<KeptDisk>, StoreError> {
    let statement = client
        .prepare_cached(
            "select d.name, d.host_id, d.size_mib, v.name as vm, d.created_at \
             from vm.disk d left join vm.vm v on v.id = d.vm_id order by d.name",
        )
        .await?;
    let rows = client.query(&statement, &[]).await?;
    rows.iter()
        .map(|row| {
            let vm: Option<String> = row.try_get("vm")?;
            Ok(KeptDisk {
                name: parsed(row, "name")?,
                host: parsed(row, "host_id")?,
                size: MebiBytes(number(row, "size_mib")?),
                vm: vm.and_then(|name| name.parse().ok()),
                created_at: row.try_get("created_at")?,
            })
        })
        .collect()
}

/// A kept disk whose row is held until the transaction ends.
#[derive(Clone, Debug)]
pub struct HeldDisk {
    /// Its host.
    pub host: HostId,
    /// The VM that has it.
    pub vm: Option<String>,
}

/// Takes a kept disk's row.
///
/// # Errors
/// The database could not.
pub async fn disk_hold(txn: &impl GenericClient, name: &VmName) -> Result<Option<HeldDisk>, StoreError> {
    let statement = txn
        .prepare_cached(
            "select d.host_id, (select v.name from vm.vm v where v.id = d.vm_id) as vm \
             from vm.disk d where d.name = $1 for update",
        )
        .await?;
    let row = txn.query_opt(&statement, &[&name.as_str()]).await?;
    row.map(|row| Ok(HeldDisk { host: parsed(&row, "host_id")?, vm: row.try_get("vm")? })).transpose()
}

/// Deletes a kept disk's row and gives its space back to its host.
///
/// # Errors
/// The database could not.
pub async fn disk_delete(txn: &impl GenericClient, name: &VmName) -> Result<(), StoreError> {
    let statement = txn
        .prepare_cached(
            "with gone as (delete from vm.disk where name = $1 returning host_id, size_mib) \
             update vm.host h set disk_held = h.disk_held - g.size_mib, \
                disk_limit = greatest(h.disk_offered, h.disk_held - g.size_mib) from gone g where h.id = g.host_id",
        )
        .await?;
    txn.execute(&statement, &[&name.as_str()]).await?;
    Ok(())
}

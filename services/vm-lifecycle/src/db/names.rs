//! Names and addresses of VMs for name servers.

use std::net::{IpAddr, Ipv4Addr};

use contract::{VmId, VmName, dns::NamedVm};
use ipnet::Ipv4Net;
use store::{GenericClient, StoreError};
use tokio_postgres::Row;
use uuid::Uuid;

use super::parsed;

const SELECT: &str =
    "select v.id, v.name, v.host_id, v.image_name, l.address from vm.vm v join vm.lease l on l.vm_id = v.id";

/// A page of all by id, one more than asked for when there is more.
///
/// # Errors
/// The database could not.
pub async fn names_page(
    client: &impl GenericClient,
    after: Option<VmId>,
    limit: u32,
) -> Result<Vec<NamedVm>, StoreError> {
    let sql = format!("{SELECT} where $1::uuid is null or v.id > $1 order by v.id limit $2");
    let statement = client.prepare_cached(&sql).await?;
    let rows = client.query(&statement, &[&after.map(|vm| vm.0), &(i64::from(limit) + 1)]).await?;
    rows.iter().map(read).collect()
}

/// Those with one of these ids, names or addresses, by id, in one statement: all as of the same moment.
///
/// # Errors
/// The database could not.
pub async fn names_find(
    client: &impl GenericClient,
    vms: &[VmId],
    names: &[VmName],
    addresses: &[Ipv4Addr],
) -> Result<Vec<NamedVm>, StoreError> {
    // Each kind by its own index: a condition with `or` over two tables would read all of both.
    let sql = format!(
        "{SELECT} where v.id in (select unnest($1::uuid[]) \
            union select n.id from vm.vm n where n.name = any($2::text[]) \
            union select a.vm_id from vm.lease a where a.address = any($3::inet[]) and a.vm_id is not null) order by v.id"
    );
    let statement = client.prepare_cached(&sql).await?;
    let vms: Vec<Uuid> = vms.iter().map(|vm| vm.0).collect();
    let names: Vec<&str> = names.iter().map(VmName::as_str).collect();
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| IpAddr::V4(*address)).collect();
    let rows = client.query(&statement, &[&vms, &names, &addresses]).await?;
    rows.iter().map(read).collect()
}

/// The hosts' subnets.
///
/// # Errors
/// The database could not.
pub async fn names_subnets(client: &impl GenericClient) -> Result<Vec<Ipv4Net>, StoreError> {
    let statement = client.prepare_cached("select subnet::text as subnet from vm.host").await?;
    client.query(&statement, &[]).await?.iter().map(|row| parsed(row, "subnet")).collect()
}

fn read(row: &Row) -> Result<NamedVm, StoreError> {
    let IpAddr::V4(address) = row.try_get("address")? else {
        return Err(StoreError::Schema("a lease is an IPv6 address".to_owned()));
    };
    Ok(NamedVm {
        id: VmId(row.try_get("id")?),
        name: parsed(row, "name")?,
        address,
        host: parsed(row, "host_id")?,
        image: row.try_get("image_name")?,
    })
}

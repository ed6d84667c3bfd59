//! Rows of `vm.lab_member`: which VMs are a lab, what its file asked for, who waits for whom.

use contract::{LabName, OperationId, VmId, VmName, lab::LabSummary};
use serde_json::json;
use store::{GenericClient, StoreError};
use uuid::Uuid;

use super::{
    number, parsed,
    vm::{COLUMNS, TABLES, host_down_seconds, read},
};
use crate::domain::lab::plan::Present;

/// The VMs of a lab and those that have one of these names, by name.
///
/// # Errors
/// The database could not.
pub async fn lab_present(
    client: &impl GenericClient,
    domain: &str,
    lab: &LabName,
    names: &[VmName],
) -> Result<Vec<Present>, StoreError> {
    let sql = format!(
        "select {COLUMNS}, m.spec, m.after, coalesce(m.leaving, false) as leaving from {TABLES} left join vm.lab_member m on m.vm_id = v.id \
         where m.lab = $2 or v.name = any($3) order by v.name"
    );
    let statement = client.prepare_cached(&sql).await?;
    let names: Vec<&str> = names.iter().map(VmName::as_str).collect();
    let rows = client.query(&statement, &[&host_down_seconds(), &lab.as_str(), &names]).await?;
    rows.iter()
        .map(|row| {
            let spec: Option<serde_json::Value> = row.try_get("spec")?;
            let spec = spec.map(serde_json::from_value).transpose();
            let spec = spec.map_err(|error| StoreError::Schema(format!("what a lab's file asked for: {error}")))?;
            let after: Option<Vec<Uuid>> = row.try_get("after")?;
            let after = after.unwrap_or_default().into_iter().map(VmId).collect();
            Ok(Present { vm: read(row, domain)?.vm, spec, after, leaving: row.try_get("leaving")? })
        })
        .collect()
}

/// A page of labs by name, one more than asked for when there is more.
///
/// # Errors
/// The database could not.
pub async fn lab_list(
    client: &impl GenericClient,
    after: Option<&LabName>,
    limit: u32,
) -> Result<Vec<LabSummary>, StoreError> {
    let statement = client
        .prepare_cached(
            "select m.lab, count(*) as vms, count(*) filter (where v.state = 'running') as running, \
                min(v.created_at) as created_at \
             from vm.lab_member m join vm.vm v on v.id = m.vm_id where ($1::text is null or m.lab > $1) \
             group by m.lab order by m.lab limit $2",
        )
        .await?;
    let rows = client.query(&statement, &[&after.map(LabName::as_str), &(i64::from(limit) + 1)]).await?;
    rows.iter()
        .map(|row| {
            Ok(LabSummary {
                lab: parsed(row, "lab")?,
                vms: number(row, "vms")?,
                running: number(row, "running")?,
                created_at: row.try_get("created_at")?,
            })
        })
        .collect()
}

/// The unfinished operations on a lab: the one that runs, and those that wait for it in their order.
///
/// # Errors
/// The database could not.
pub async fn lab_operations(
    client: &impl GenericClient,
    lab: &LabName,
) -> Result<(Option<OperationId>, Vec<OperationId>), StoreError> {
    let statement = client
        .prepare_cached(
            "select id, state from operations.operation where resource = $1 and state in ('queued', 'running') order by id",
        )
        .await?;
    let (mut running, mut queued) = (None, Vec::new());
    for row in client.query(&statement, &[&lab.resource()]).await? {
        let id = OperationId(row.try_get("id")?);
        match row.try_get::<_, &str>("state")? {
            "running" => running = Some(id),
            _ => queued.push(id),
        }
    }
    Ok((running, queued))
}

/// Makes a VM's place in its lab what the file says now; a VM that is gone has none.
///
/// # Errors
/// The database could not.
pub async fn lab_place(
    client: &impl GenericClient,
    lab: &LabName,
    vm: VmId,
    spec: &contract::vm::CreateRequest,
    after: &[VmId],
) -> Result<(), StoreError> {
    let statement =
        client.prepare_cached("update vm.lab_member set spec = $3, after = $4 where vm_id = $1 and lab = $2").await?;
    let after: Vec<Uuid> = after.iter().map(|id| id.0).collect();
    client.execute(&statement, &[&vm.0, &lab.as_str(), &json!(spec), &after]).await?;
    Ok(())
}

/// Notes that these VMs are being taken back: no later operation on the lab keeps them.
///
/// # Errors
/// The database could not.
pub async fn lab_leave(client: &impl GenericClient, vms: &[VmId]) -> Result<(), StoreError> {
    let ids: Vec<Uuid> = vms.iter().map(|id| id.0).collect();
    let statement = client.prepare_cached("update vm.lab_member set leaving = true where vm_id = any($1)").await?;
    client.execute(&statement, &[&ids]).await?;
    Ok(())
}

/// How many free and rested addresses each host has, at the most so many as a lab can want.
///
/// # Errors
/// The database could not.
pub async fn free_addresses(
    client: &impl GenericClient,
    rest: std::time::Duration,
) -> Result<Vec<(contract::HostId, u32)>, StoreError> {
    let statement = client
        .prepare_cached(
            "select h.id, (select count(*) from ( \
                select from vm.lease l where l.host_id = h.id and l.vm_id is null \
                    and l.freed_at <= clock_timestamp() - make_interval(secs => $1) limit $2) f) as free \
             from vm.host h",
        )
        .await?;
    let most = i64::try_from(contract::lab::LAB_VMS_MAX).unwrap_or(i64::MAX);
    let rows = client.query(&statement, &[&rest.as_secs_f64(), &most]).await?;
    rows.iter().map(|row| Ok((parsed(row, "id")?, number(row, "free")?))).collect()
}

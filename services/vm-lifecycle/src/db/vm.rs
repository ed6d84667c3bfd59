//! Rows of `vm.vm`: reading them, and changing their state under the fence of a claim's epoch.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use contract::{
    HostId, ImageId, KernelId, LabName, LabelSelector, Labels, MebiBytes, OperationId, VmId, VmName, deadline, subject,
    vm::{ListRequest, Vm, VmState},
};
use serde_json::json;
use store::{GenericClient, Store, StoreError, outbox};
use time::OffsetDateTime;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{idle, number, parsed};
use crate::domain::{
    mac,
    state::{self, Denied, Event, Transition},
};

/// A VM as its row, lease and host tell.
#[derive(Clone, Debug)]
pub struct VmRow {
    /// What clients see, but for the domain name.
    pub vm: Vm,
    /// The subnet's prefix length.
    pub prefix: u8,
    /// The subnet's gateway.
    pub gateway: Ipv4Addr,
    /// Who may log in.
    pub ssh_keys: Vec<String>,
    /// The claim that wrote the row last.
    pub epoch: i64,
}

pub(super) const COLUMNS: &str = "v.id, v.name, v.state, v.host_id, v.image_id, v.image_name, (select i.digest from image.image i where i.id = v.image_id) as image_digest, \
     (select jsonb_build_object('id', k.id, 'digest', k.digest, 'release', k.release) from image.kernel k where k.id = v.kernel_id) as booted, v.cpus::bigint as cpus, v.memory_mib, \
     v.disk_mib, v.ssh_keys, v.ssh_host_key, v.ssh_port, v.reason, v.epoch, v.created_at, v.ready_at, l.address, \
     v.labels, v.restart_policy, v.restarts::bigint as restarts, v.restart_at, v.expires_at, v.idle_seconds, v.idle_action, \
     case when v.state = 'running' then v.active_at end as active_at, v.deletion_protection, v.features, \
     array(select o.id from operations.operation o where o.resource = 'vm:' || v.id and o.state = 'queued' order by o.id) \
        as queued, \
     masklen(h.subnet) as prefix, h.gateway, (select m.lab from vm.lab_member m where m.vm_id = v.id) as lab, \
     h.last_seen < clock_timestamp() - make_interval(secs => $1) as host_down, \
     (select o.id from operations.operation o where o.resource = 'vm:' || v.id and o.state = 'running') as operation";
pub(super) const TABLES: &str = "vm.vm v join vm.lease l on l.vm_id = v.id join vm.host h on h.id = v.host_id";

/// The longest pause before a VM is started again by its policy; the first is 1 s, each one double.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(300);
/// A VM that ran this long counts as healthy: its pauses begin anew.
const RESTART_FORGET: Duration = Duration::from_secs(600);

/// How long a silent host counts as up, in seconds, as every query takes it.
pub fn host_down_seconds() -> f64 {
    deadline::HOST_DOWN.as_secs_f64()
}

/// The VM of that name or id.
///
/// # Errors
/// The database could not.
pub async fn vm_find(client: &impl GenericClient, domain: &str, name_or_id: &str) -> Result<Option<VmRow>, StoreError> {
    let (condition, id) = match Uuid::parse_str(name_or_id) {
        Ok(id) => ("v.id = $2::uuid and $3::text is not null", Some(id)),
        Err(_) => ("$2::uuid is null and v.name = $3", None),
    };
    let statement = client.prepare_cached(&format!("select {COLUMNS} from {TABLES} where {condition}")).await?;
    let row = client.query_opt(&statement, &[&host_down_seconds(), &id, &name_or_id]).await?;
    row.map(|row| read(&row, domain)).transpose()
}

/// A page of VMs by name, one more than asked for when there is more.
///
/// # Errors
/// The database could not.
pub async fn vm_list(
    client: &impl GenericClient,
    domain: &str,
    filter: &ListRequest,
    limit: u32,
) -> Result<Vec<VmRow>, StoreError> {
    // A page of whole scripts would be more than a message holds.
    let listed = COLUMNS.replace("v.features,", "v.features - '{user_data,env}'::text[] as features,");
    let sql = format!(
        "select {listed} from {TABLES} where ($2::text is null or v.state = $2) and ($3::text is null or v.host_id = $3) \
         and ($4::text is null or v.name > $4) and ($6::jsonb is null or v.labels @> $6) \
         and ($7::text[] is null or v.labels ?& $7) and ($8::text is null or v.image_name = $8 or v.image_id::text = $8) \
         and ($9::text is null or exists (select from vm.lab_member m where m.vm_id = v.id and m.lab = $9)) \
         order by v.name limit $5"
    );
    let statement = client.prepare_cached(&sql).await?;
    let state = filter.state.map(VmState::as_str);
    let host = filter.host.as_ref().map(HostId::as_str);
    let after = filter.after.as_ref().map(VmName::as_str);
    let (exact, present) = labels(filter.label.as_ref());
    let limit = i64::from(limit) + 1;
    let lab = filter.lab.as_ref().map(LabName::as_str);
    let rows = client
        .query(
            &statement,
            &[&host_down_seconds(), &state, &host, &after, &limit, &exact, &present, &filter.image, &lab],
        )
        .await?;
    rows.iter().map(|row| read(row, domain)).collect()
}

/// A selector as the index takes it: labels of one value, and keys of any.
fn labels(selector: Option<&LabelSelector>) -> (Option<serde_json::Value>, Option<Vec<&str>>) {
    let parts = selector.map(|selector| selector.0.as_slice()).unwrap_or_default();
    let exact: Labels = parts.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?))).collect();
    let present: Vec<_> = parts.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| key.as_str()).collect();
    ((!exact.is_empty()).then(|| json!(exact)), (!present.is_empty()).then_some(present))
}

pub(super) fn read(row: &Row, domain: &str) -> Result<VmRow, StoreError> {
    let (IpAddr::V4(address), IpAddr::V4(gateway)) = (row.try_get("address")?, row.try_get("gateway")?) else {
        return Err(StoreError::Schema("a lease or gateway is an IPv6 address".to_owned()));
    };
    let name: VmName = parsed(row, "name")?;
    let port: Option<i32> = row.try_get("ssh_port")?;
    let vm = Vm {
        id: VmId(row.try_get("id")?),
        state: parsed(row, "state")?,
        host: parsed(row, "host_id")?,
        host_down: row.try_get("host_down")?,
        image: ImageId(row.try_get("image_id")?),
        image_name: row.try_get("image_name")?,
        image_digest: row.try_get("image_digest")?,
        booted: row
            .try_get::<_, Option<serde_json::Value>>("booted")?
            .map(serde_json::from_value)
            .transpose()
            .map_err(|error| StoreError::Schema(format!("a VM's kernel: {error}")))?,
        cpus: number(row, "cpus")?,
        memory: MebiBytes(number(row, "memory_mib")?),
        disk: MebiBytes(number(row, "disk_mib")?),
        address,
        mac: mac::of(address),
        fqdn: format!("{name}.{domain}"),
        name,
        ssh_host_key: row.try_get("ssh_host_key")?,
        ssh_port: port.and_then(|port| u16::try_from(port).ok()),
        lab: row
            .try_get::<_, Option<String>>("lab")?
            .map(|lab| lab.parse())
            .transpose()
            .map_err(|error| StoreError::Schema(format!("a VM's lab: {error}")))?,
        labels: serde_json::from_value(row.try_get("labels")?)
            .map_err(|error| StoreError::Schema(format!("a VM's labels: {error}")))?,
        restart: parsed(row, "restart_policy")?,
        restarts: number(row, "restarts")?,
        restart_at: row.try_get("restart_at")?,
        expires_at: row.try_get("expires_at")?,
        idle_limit: idle::limit(row)?,
        active_at: row.try_get("active_at")?,
        deletion_protection: row.try_get("deletion_protection")?,
        features: serde_json::from_value(row.try_get("features")?)
            .map_err(|error| StoreError::Schema(format!("a VM's features: {error}")))?,
        queued: row.try_get::<_, Vec<Uuid>>("queued")?.into_iter().map(OperationId).collect(),
        operation: row.try_get::<_, Option<Uuid>>("operation")?.map(OperationId),
        reason: row.try_get("reason")?,
        created_at: row.try_get("created_at")?,
        ready_at: row.try_get::<_, Option<OffsetDateTime>>("ready_at")?,
    };
    let prefix: i32 = row.try_get("prefix")?;
    let ssh_keys = row.try_get("ssh_keys")?;
    Ok(VmRow { vm, prefix: u8::try_from(prefix).unwrap_or(32), gateway, ssh_keys, epoch: row.try_get("epoch")? })
}

/// Takes down which of the lab's kernels a VM boots, in the name of the claim with that epoch; no, where a newer one holds it or it is gone.
///
/// # Errors
/// The database could not; the constraint `vm_kernel` where there is no such kernel.
pub async fn vm_set_kernel(
    client: &impl GenericClient,
    vm: VmId,
    epoch: i64,
    kernel: KernelId,
) -> Result<bool, StoreError> {
    let update = "update vm.vm set kernel_id = $3, changed_at = clock_timestamp() where id = $1 and epoch <= $2";
    let statement = client.prepare_cached(update).await?;
    Ok(client.execute(&statement, &[&vm.0, &epoch, &kernel.0]).await? == 1)
}

/// What a change writes beside the state.
#[derive(Clone, Debug, Default)]
pub struct Patch {
    /// Why it is so; cleared when `None`.
    pub reason: Option<String>,
    /// The host carried out a command of this claim: older observations are old news from now on.
    pub acknowledged: bool,
    /// Its ssh host key, once known.
    pub ssh_host_key: Option<String>,
    /// Its ssh server's port, as of this start.
    pub ssh_port: Option<u16>,
    /// Nobody asked for it: the restart policy has a word in it.
    pub by_itself: bool,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Done; where the VM stood before, and stands now.
    Updated {
        /// Before.
        was: VmState,
        /// Now.
        now: VmState,
    },
    /// A newer claim has written the row.
    Stale,
    /// There is no such VM.
    NotFound,
    /// Its state does not allow it.
    Denied(Denied),
}

/// Applies an event to a VM in the name of the claim with that epoch, with its outbox event.
///
/// # Errors
/// The database could not; nothing has changed, or (indeterminate) a repeat finds it done.
pub async fn vm_apply(store: &Store, vm: VmId, epoch: i64, event: Event, patch: &Patch) -> Result<Changed, StoreError> {
    let mut client = store.client().await?;
    let txn = client.transaction().await?;
    let statement = txn.prepare_cached("select state, epoch from vm.vm where id = $1 for update").await?;
    let Some(row) = txn.query_opt(&statement, &[&vm.0]).await? else { return Ok(Changed::NotFound) };
    let was: VmState = parsed(&row, "state")?;
    if row.try_get::<_, i64>("epoch")? > epoch {
        return Ok(Changed::Stale);
    }
    let now = match state::apply(was, event) {
        Err(denied) => return Ok(Changed::Denied(denied)),
        Ok(Transition::Stays) => was,
        Ok(Transition::To(next)) => next,
    };
    vm_write_in_txn(&txn, vm, epoch, was, now, patch).await?;
    txn.commit().await.map_err(StoreError::committing)?;
    Ok(Changed::Updated { was, now })
}

/// Writes a state that [`state::apply`] allowed, and tells of it when it is a settled one.
pub(super) async fn vm_write_in_txn(
    txn: &impl GenericClient,
    vm: VmId,
    epoch: i64,
    was: VmState,
    now: VmState,
    patch: &Patch,
) -> Result<(), StoreError> {
    // A state that stays keeps its reason: nothing new was learnt.
    let statement = txn
        .prepare_cached(
            "update vm.vm v set state = $2, epoch = greatest(v.epoch, $3), \
                host_epoch = case when $4 then greatest(v.host_epoch, $3) else v.host_epoch end, \
                reason = case when v.state = $2 then v.reason else $5 end, \
                ssh_host_key = coalesce($6, v.ssh_host_key), ssh_port = coalesce($7, v.ssh_port), \
                restart_at = case when v.state = $2 then v.restart_at \
                    when $8 and (v.restart_policy = 'always' or (v.restart_policy = 'on-failure' and $2 = 'failed')) \
                    then clock_timestamp() + make_interval(secs => least($9, pow(2, \
                        case when v.ready_at < clock_timestamp() - make_interval(secs => $10) and v.state = 'running' \
                        then 0 else least(v.restarts, 30) end))) end, \
                restarts = case when v.state = 'running' and $2 <> v.state \
                    and v.ready_at < clock_timestamp() - make_interval(secs => $10) then 0 else v.restarts end, \
                ready_at = case when $2 = 'running' and v.state not in ($2, 'paused') then clock_timestamp() else v.ready_at end, \
                active_at = case when $2 = 'running' and v.state <> $2 then clock_timestamp() else v.active_at end, \
                changed_at = clock_timestamp() \
             from vm.lease l where v.id = $1 and l.vm_id = v.id returning v.name, v.host_id, host(l.address) as address",
        )
        .await?;
    let port = patch.ssh_port.map(i32::from);
    let row = txn
        .query_one(
            &statement,
            &[
                &vm.0,
                &now.as_str(),
                &epoch,
                &patch.acknowledged,
                &patch.reason,
                &patch.ssh_host_key,
                &port,
                &patch.by_itself,
                &RESTART_PAUSE_MAX.as_secs_f64(),
                &RESTART_FORGET.as_secs_f64(),
            ],
        )
        .await?;
    if was != now && matches!(now, VmState::Running | VmState::Paused | VmState::Stopped | VmState::Failed) {
        let mut data = json!({
            "name": row.try_get::<_, String>("name")?,
            "state": now,
            "host": row.try_get::<_, String>("host_id")?,
            "address": row.try_get::<_, String>("address")?,
        });
        if let Some(reason) = &patch.reason {
            data["reason"] = json!(reason);
        }
        outbox::push(txn, &subject::event("vm", vm, now.as_str()), &data).await?;
    }
    Ok(())
}

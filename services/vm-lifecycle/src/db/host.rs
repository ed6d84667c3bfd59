//! Rows of `vm.host`: registration, heartbeats, who has room.

use std::time::Duration;

use contract::{
    HostId, KernelName, MebiBytes,
    host::{Capacity, Host, HostState, RegisterRequest},
};
use ipnet::Ipv4Net;
use std::net::{IpAddr, Ipv4Addr};
use store::{GenericClient, Store, StoreError};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{db_error, number, parsed, vm::host_down_seconds};
use crate::domain::placement::Candidate;

/// A host's share of the lab's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The subnet.
    pub subnet: Ipv4Net,
    /// Its first address.
    pub gateway: Ipv4Addr,
}

/// What became of a registration.
#[derive(Debug, PartialEq, Eq)]
pub enum Registration {
    /// Taken.
    Done(Share),
    /// A newer incarnation speaks for the host, and was heard of lately.
    Superseded,
    /// The lab's network has no subnet left.
    NetworkFull,
}

/// Registers a host, giving it a subnet and its leases the first time.
///
/// # Errors
/// The database could not.
pub async fn host_register(
    store: &Store,
    network: Ipv4Net,
    prefix: u8,
    request: &RegisterRequest,
) -> Result<Registration, StoreError> {
    let mut client = store.client().await?;
    let txn = client.transaction().await?;
    let statement = txn
        .prepare_cached(
            "select incarnation, last_seen >= clock_timestamp() - make_interval(secs => $2) as fresh \
             from vm.host where id = $1 for update",
        )
        .await?;
    let known = txn.query_opt(&statement, &[&request.host.as_str(), &host_down_seconds()]).await?;
    if let Some(row) = known
        && row.try_get::<_, bool>("fresh")?
        && is_older(request.incarnation, row.try_get("incarnation")?)
    {
        return Ok(Registration::Superseded);
    }
    let statement = txn
        .prepare_cached(
            "select o_subnet::text as subnet, o_gateway as gateway \
             from vm.host_register($1, $2::text::cidr, $3, $4, $5, $6, $7, $8, $9)",
        )
        .await?;
    let capacity = request.capacity;
    let row = txn
        .query_one(
            &statement,
            &[
                &request.host.as_str(),
                &network.trunc().to_string(),
                &i32::from(prefix),
                &request.incarnation,
                &i64::from(capacity.cpus),
                &i64::from(capacity.memory.0),
                &i64::from(capacity.disk.0),
                &request.vmm,
                &request.version,
            ],
        )
        .await
        .map_err(StoreError::from);
    let row = match row {
        Err(error) if db_error(&error).is_some_and(|error| error.code().code() == "WR006") => {
            return Ok(Registration::NetworkFull);
        }
        other => other?,
    };
    let share = Share { subnet: parsed(&row, "subnet")?, gateway: gateway(&row)? };
    let kernels = names(&request.kernels);
    txn.execute("update vm.host set kernels = $2 where id = $1", &[&request.host.as_str(), &kernels]).await?;
    txn.commit().await.map_err(StoreError::committing)?;
    Ok(Registration::Done(share))
}

fn names(kernels: &[KernelName]) -> Vec<&str> {
    kernels.iter().map(KernelName::as_str).collect()
}

fn kernels(row: &Row) -> Result<Vec<KernelName>, StoreError> {
    let names: Vec<String> = row.try_get("kernels")?;
    names.iter().map(|name| name.parse().map_err(|error| StoreError::Schema(format!("a kernel: {error}")))).collect()
}

/// Whether an incarnation is older than another. Only time-ordered ids (UUIDv7) tell; others count as newer.
fn is_older(this: Uuid, other: Uuid) -> bool {
    this.get_version_num() == 7 && other.get_version_num() == 7 && this < other
}

fn gateway(row: &Row) -> Result<Ipv4Addr, StoreError> {
    match row.try_get("gateway")? {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(StoreError::Schema("a gateway is an IPv6 address".to_owned())),
    }
}

/// What became of a heartbeat or report's check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The host's current incarnation.
    Current,
    /// Another incarnation speaks for the host.
    Superseded,
    /// The host never registered.
    Unknown,
}

/// Notes that a host lives, and what it offers now.
///
/// # Errors
/// The database could not.
pub async fn host_heartbeat(
    store: &Store,
    host: &HostId,
    incarnation: Uuid,
    capacity: Option<Capacity>,
    kernels: Option<&[KernelName]>,
) -> Result<Heard, StoreError> {
    let client = store.client().await?;
    let statement = client
        .prepare_cached(
            "update vm.host h set last_seen = clock_timestamp(), \
                cpus_offered = coalesce($3, h.cpus_offered), cpus_limit = greatest(coalesce($3, h.cpus_offered), h.cpus_held), \
                memory_offered = coalesce($4, h.memory_offered), \
                memory_limit = greatest(coalesce($4, h.memory_offered), h.memory_held), \
                disk_offered = coalesce($5, h.disk_offered), disk_limit = greatest(coalesce($5, h.disk_offered), h.disk_held), \
                kernels = coalesce($6, h.kernels) \
             where h.id = $1 and h.incarnation = $2",
        )
        .await?;
    let cpus = capacity.map(|capacity| i64::from(capacity.cpus));
    let memory = capacity.map(|capacity| i64::from(capacity.memory.0));
    let disk = capacity.map(|capacity| i64::from(capacity.disk.0));
    let updated =
        client.execute(&statement, &[&host.as_str(), &incarnation, &cpus, &memory, &disk, &kernels.map(names)]).await?;
    if updated > 0 {
        return Ok(Heard::Current);
    }
    let known = client.query_opt("select from vm.host where id = $1", &[&host.as_str()]).await?;
    Ok(if known.is_some() { Heard::Superseded } else { Heard::Unknown })
}

/// All hosts, by id.
///
/// # Errors
/// The database could not.
pub async fn host_list(client: &impl GenericClient) -> Result<Vec<Host>, StoreError> {
    let statement = client
        .prepare_cached(
            "select h.id, h.subnet::text as subnet, h.vmm, h.version, h.kernels, h.last_seen, \
                h.last_seen >= clock_timestamp() - make_interval(secs => $1) as up, \
                h.cpus_offered, h.memory_offered, h.disk_offered, h.cpus_held, h.memory_held, h.disk_held, \
                (select count(*) from vm.vm v where v.host_id = h.id) as vms \
             from vm.host h order by h.id",
        )
        .await?;
    let rows = client.query(&statement, &[&host_down_seconds()]).await?;
    rows.iter()
        .map(|row| {
            let capacity = |what: &str| {
                Ok::<_, StoreError>(Capacity {
                    cpus: number(row, &format!("cpus_{what}"))?,
                    memory: MebiBytes(number(row, &format!("memory_{what}"))?),
                    disk: MebiBytes(number(row, &format!("disk_{what}"))?),
                })
            };
            Ok(Host {
                id: parsed(row, "id")?,
                state: if row.try_get("up")? { HostState::Up } else { HostState::Down },
                capacity: capacity("offered")?,
                allocated: capacity("held")?,
                subnet: parsed(row, "subnet")?,
                vmm: row.try_get("vmm")?,
                version: row.try_get("version")?,
                kernels: kernels(row)?,
                vms: number(row, "vms")?,
                last_seen: row.try_get("last_seen")?,
            })
        })
        .collect()
}

/// All hosts as placement sees them.
///
/// # Errors
/// The database could not.
pub async fn host_candidates(client: &impl GenericClient, rest: Duration) -> Result<Vec<Candidate>, StoreError> {
    let statement = client
        .prepare_cached(
            "select h.id, h.kernels, h.last_seen >= clock_timestamp() - make_interval(secs => $1) as up, \
                h.cpus_offered - h.cpus_held as cpus, h.memory_offered - h.memory_held as memory, \
                h.disk_offered - h.disk_held as disk, \
                exists (select from vm.lease l where l.host_id = h.id and l.vm_id is null \
                        and l.freed_at <= clock_timestamp() - make_interval(secs => $2)) as has_address \
             from vm.host h order by h.id",
        )
        .await?;
    let rows = client.query(&statement, &[&host_down_seconds(), &rest.as_secs_f64()]).await?;
    rows.iter()
        .map(|row| {
            Ok(Candidate {
                id: parsed(row, "id")?,
                up: row.try_get("up")?,
                free_cpus: row.try_get("cpus")?,
                free_memory: row.try_get("memory")?,
                free_disk: row.try_get("disk")?,
                has_address: row.try_get("has_address")?,
                kernels: kernels(row)?,
            })
        })
        .collect()
}

/// A host's share of the network.
///
/// # Errors
/// The database could not, or there is no such host.
pub async fn host_share(client: &impl GenericClient, host: &HostId) -> Result<Share, StoreError> {
    let statement = client.prepare_cached("select subnet::text as subnet, gateway from vm.host where id = $1").await?;
    let row = client.query_one(&statement, &[&host.as_str()]).await?;
    Ok(Share { subnet: parsed(&row, "subnet")?, gateway: gateway(&row)? })
}

/// Tells, once, of each host that came up or went silent since it was told last. Answers with those hosts.
///
/// # Errors
/// The database could not; nothing was told.
pub async fn host_announce(store: &Store) -> Result<Vec<(String, bool)>, StoreError> {
    let client = store.client().await?;
    let statement = client
        .prepare_cached(
            "with changed as ( \
                update vm.host h set announced_up = not h.announced_up from ( \
                    select c.id from vm.host c \
                    where c.announced_up <> (c.last_seen >= clock_timestamp() - make_interval(secs => $1)) \
                    order by c.id for no key update skip locked) c \
                where h.id = c.id returning h.id, h.announced_up), \
             told as ( \
                insert into operations.outbox (subject, data) \
                select 'warren.event.host.' || id || case when announced_up then '.up' else '.down' end, \
                       jsonb_build_object('host', id, 'state', case when announced_up then 'up' else 'down' end) \
                from changed) \
             select id, announced_up from changed",
        )
        .await?;
    let rows = client.query(&statement, &[&host_down_seconds()]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

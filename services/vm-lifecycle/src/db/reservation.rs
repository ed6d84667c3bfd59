//! The **reservation**: the one statement that gives a VM its name, room and address, and its reverse.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use contract::{
    ApiError, HostId, ImageId, Labels, MebiBytes, VmId, VmName,
    agent::Fence,
    feature::{Features, PublishedPort},
    idle::IdleAction,
    vm::RestartPolicy,
};
use runtime::telemetry;
use serde::Serialize;
use store::{GenericClient, Store, StoreConfig, StoreError};
use tokio::sync::Semaphore;

use super::db_error;

/// What is to be reserved.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The VM's id, minted before.
    pub id: VmId,
    /// Its name.
    pub name: VmName,
    /// The host chosen for it.
    pub host: HostId,
    /// Its image.
    pub image: ImageId,
    /// That image's name now.
    pub image_name: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: MebiBytes,
    /// Disk.
    pub disk: MebiBytes,
    /// Who may log in.
    pub ssh_keys: Vec<String>,
    /// What the row says beside all that.
    pub settings: Settings,
    /// The operation that reserves, which must still hold its claim. `None` only in benchmarks.
    pub fence: Option<Fence>,
}

/// What a VM's row says beside name, place and size; the database reads it as JSON.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Settings {
    /// What it is grouped by.
    pub labels: Labels,
    /// Whether a delete is refused.
    pub deletion_protection: bool,
    /// What happens when it ends by itself.
    pub restart: RestartPolicy,
    /// How long it lives, in seconds from its reservation.
    pub ttl_seconds: Option<u64>,
    /// How long it may be idle, in seconds.
    pub idle_seconds: Option<u64>,
    /// What happens then; as present as `idle_seconds`.
    pub idle_action: Option<IdleAction>,
    /// What it has beside its size.
    pub features: Features,
    /// What its own data disks take of its host, in MiB.
    pub data_disks_mib: u64,
    /// The host's ports that lead to it.
    pub ports: Vec<Port>,
    /// Disks that outlive it.
    pub kept_disks: Vec<KeptDisk>,
}

/// A host's port, as the database knows it.
#[derive(Clone, Debug, Serialize)]
pub struct Port {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The host's port.
    pub port: u16,
}

/// A disk that outlives its VM, as the database knows it.
#[derive(Clone, Debug, Serialize)]
pub struct KeptDisk {
    /// Its name in the lab.
    pub name: VmName,
    /// Its size in MiB, unless it is larger already.
    pub size_mib: u32,
}

/// The host's ports of a VM's.
pub fn host_ports(ports: &[PublishedPort]) -> Vec<Port> {
    ports.iter().map(|port| Port { protocol: port.protocol.as_str(), port: port.host }).collect()
}

impl Settings {
    /// With what these features take.
    #[must_use]
    pub fn with(mut self, features: Features) -> Self {
        let own = features.disks.iter().filter(|disk| !disk.keep);
        self.data_disks_mib = own.map(|disk| u64::from(disk.size.0)).sum();
        let kept = features.disks.iter().filter(|disk| disk.keep);
        self.kept_disks = kept.map(|disk| KeptDisk { name: disk.name.clone(), size_mib: disk.size.0 }).collect();
        self.ports = host_ports(&features.ports);
        self.features = features;
        self
    }
}

/// What was reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// The VM's address for life.
    pub address: Ipv4Addr,
    /// Its host: another than asked for when this is a replay of an earlier reservation.
    pub host: HostId,
}

/// Why nothing was reserved.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// Another VM has the name.
    #[error("a VM named {0} exists")]
    NameTaken(VmName),
    /// The host is not known.
    #[error("there is no host {0}")]
    NoHost(HostId),
    /// The host has too little left; says what is left.
    #[error("host {host} has too little room left: {left}")]
    NoRoom {
        /// Which host.
        host: HostId,
        /// JSON: `cpus`, `memory_mib`, `disk_mib`.
        left: String,
    },
    /// The host has no free and rested address.
    #[error("host {0} has no free address")]
    NoAddress(HostId),
    /// The image is not on the host any more.
    #[error("the image {image} is not on host {host} any more")]
    ReplicaGone {
        /// The image's name.
        image: String,
        /// The host.
        host: HostId,
    },
    /// A port leads to another VM already; in words.
    #[error("{0}")]
    PortTaken(String),
    /// A kept disk is in use or on another host; in words.
    #[error("{0}")]
    DiskTaken(String),
    /// Another worker holds the operation now.
    #[error("the operation is held by another worker")]
    Stale,
    /// The database could not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ReserveError> for ApiError {
    fn from(error: ReserveError) -> Self {
        let text = error.to_string();
        match error {
            ReserveError::NameTaken(_) => {
                ApiError::already_exists(text).hint("choose another name, or delete that VM first")
            }
            ReserveError::NoHost(_) => ApiError::not_found(text).hint("`warren host ls` lists the hosts"),
            ReserveError::NoRoom { .. } => {
                ApiError::resource_exhausted(text).hint("delete or shrink VMs, or add a host")
            }
            ReserveError::NoAddress(_) => ApiError::resource_exhausted(text)
                .hint("delete VMs (a freed address rests for a while), or configure larger subnets"),
            ReserveError::ReplicaGone { .. } => ApiError::failed_precondition(text).hint("pull the image again"),
            ReserveError::PortTaken(_) => {
                ApiError::already_exists(text).hint("publish another port, or let the VM run on another host")
            }
            ReserveError::DiskTaken(_) => {
                ApiError::failed_precondition(text).hint("`warren disk ls` shows who uses it and where it is")
            }
            ReserveError::Stale => ApiError::aborted(text),
            ReserveError::Store(error) => error.into(),
        }
    }
}

/// Reserves and releases, with a bounded number of statements at once: more of them make PostgreSQL slower,
/// and the rest of the service needs connections too. Clones share the bound.
#[derive(Clone, Debug)]
pub struct Reservations {
    pub(super) store: Store,
    pub(super) turns: Arc<Semaphore>,
    rest: Duration,
}

/// Database connections kept for everything that is no reservation: heartbeats must get through a crowd of creates.
const KEPT_CONNECTIONS: usize = 2;

const RESERVE: &str =
    "select o_address, o_host from vm.reserve($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)";

impl Reservations {
    /// At most `at_once` statements at a time; a freed address rests for `rest`.
    pub fn new(store: Store, at_once: usize, rest: Duration) -> Self {
        Self { store, turns: Arc::new(Semaphore::new(at_once.max(1))), rest }
    }

    /// As the service does it: all connections of the pool but [`KEPT_CONNECTIONS`].
    pub fn of_pool(store: Store, pool: StoreConfig, rest: Duration) -> Self {
        Self::new(store, pool.max_connections.saturating_sub(KEPT_CONNECTIONS), rest)
    }

    /// How long a freed address rests.
    pub fn rest(&self) -> Duration {
        self.rest
    }

    /// Reserves; a repeat answers with what the first one got.
    ///
    /// # Errors
    /// Nothing was reserved; see the variants. After [`StoreError::Indeterminate`] a repeat tells.
    pub async fn reserve(&self, claim: &Claim) -> Result<Reserved, ReserveError> {
        let turn = self.turns.acquire().await;
        let client = self.store.client().await?;
        let reserved = self.reserve_with(&client, claim).await;
        drop((client, turn));
        reserved
    }

    /// Reserves on a connection of the caller's, within its transaction if it has one.
    ///
    /// # Errors
    /// As [`Self::reserve`].
    pub(super) async fn reserve_with(
        &self,
        client: &impl GenericClient,
        claim: &Claim,
    ) -> Result<Reserved, ReserveError> {
        let statement = client.prepare_cached(RESERVE).await.map_err(StoreError::from)?;
        let operation = claim.fence.map(|fence| fence.operation.0);
        let row = client
            .query_one(
                &statement,
                &[
                    &claim.id.0,
                    &claim.name.as_str(),
                    &claim.host.as_str(),
                    &claim.image.0,
                    &claim.image_name,
                    &i32::try_from(claim.cpus).unwrap_or(i32::MAX),
                    &i64::from(claim.memory.0),
                    &i64::from(claim.disk.0),
                    &claim.ssh_keys,
                    &serde_json::json!(claim.settings),
                    &operation,
                    &claim.fence.map_or(0, |fence| fence.epoch),
                    &self.rest.as_secs_f64(),
                    &telemetry::current_traceparent(),
                ],
            )
            .await;
        let row = row.map_err(|error| refusal(error.into(), claim))?;
        let std::net::IpAddr::V4(address) = row.try_get(0).map_err(StoreError::from)? else {
            return Err(StoreError::Schema("a lease holds an IPv6 address".to_owned()).into());
        };
        let host: String = row.try_get(1).map_err(StoreError::from)?;
        let host = host.parse().map_err(|error| StoreError::Schema(format!("a VM's host: {error}")))?;
        Ok(Reserved { address, host })
    }

    /// Gives back all that VM holds, and its row. Done already: fine.
    ///
    /// # Errors
    /// `Stale`: a newer claim works on the VM; nothing was given back.
    pub async fn release(&self, vm: VmId, epoch: i64) -> Result<(), ReserveError> {
        let client = self.store.client().await?;
        let statement = client.prepare_cached("select vm.release($1, $2, $3)").await.map_err(StoreError::from)?;
        let row = client.query_one(&statement, &[&vm.0, &epoch, &telemetry::current_traceparent()]).await;
        match row.map_err(StoreError::from)?.try_get::<_, &str>(0).map_err(StoreError::from)? {
            "stale" => Err(ReserveError::Stale),
            _ => Ok(()),
        }
    }
}

fn refusal(error: StoreError, claim: &Claim) -> ReserveError {
    if matches!(&error, StoreError::Constraint { name, .. } if name == "vm_replica") {
        return ReserveError::ReplicaGone { image: claim.image_name.clone(), host: claim.host.clone() };
    }
    if matches!(&error, StoreError::Constraint { name, .. } if name == "vm_host_id_fkey") {
        return ReserveError::NoHost(claim.host.clone());
    }
    let Some(refused) = db_error(&error) else { return error.into() };
    match refused.code().code() {
        "WR001" => ReserveError::NameTaken(claim.name.clone()),
        "WR002" => ReserveError::NoHost(claim.host.clone()),
        "WR003" => {
            ReserveError::NoRoom { host: claim.host.clone(), left: refused.detail().unwrap_or("unknown").to_owned() }
        }
        "WR004" => ReserveError::NoAddress(claim.host.clone()),
        "WR005" => ReserveError::Stale,
        "WR007" => ReserveError::PortTaken(refused.message().to_owned()),
        "WR008" => ReserveError::DiskTaken(refused.message().to_owned()),
        _ => error.into(),
    }
}

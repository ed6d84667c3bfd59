//! The reservation of a whole **lab**: the reservations of its VMs and the operations that boot them, in one transaction.

use contract::{ApiError, LabName, VmId, agent::Fence, subject, vm::CreateRequest};
use operations::NewOperation;
use serde_json::json;
use store::{GenericClient, StoreError, outbox};
use uuid::Uuid;

use super::{
    db_error,
    reservation::{Claim, Reservations, ReserveError},
};

/// One VM of a lab that is to be reserved.
#[derive(Debug)]
pub struct Place<'a> {
    /// What it takes. Its `fence` is empty: the operation that reserves is the lab's.
    pub claim: Claim,
    /// What the lab's file asked for.
    pub spec: &'a CreateRequest,
    /// Those it waits for.
    pub after: Vec<VmId>,
    /// Its create, which is held until its turn comes. It takes the reservation over.
    pub create: NewOperation<'a>,
}

/// Why nothing of a lab was reserved.
#[derive(Debug, thiserror::Error)]
pub enum LabReserveError {
    /// Other VMs have these names.
    #[error("VMs named {} exist", .0.join(", "))]
    NamesTaken(Vec<String>),
    /// A VM's image is not on its host any more; in words.
    #[error("{0}")]
    ReplicaGone(String),
    /// One VM could not be reserved.
    #[error("VM {vm}: {source}")]
    Vm {
        /// Its name.
        vm: String,
        /// Why.
        source: ReserveError,
    },
    /// Another worker holds the operation now.
    #[error("the operation is held by another worker")]
    Stale,
    /// A create was not accepted.
    #[error(transparent)]
    Refused(ApiError),
    /// The database could not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<LabReserveError> for ApiError {
    fn from(error: LabReserveError) -> Self {
        let text = error.to_string();
        match error {
            LabReserveError::NamesTaken(names) => ApiError::already_exists(text)
                .hint("choose other names, or delete those VMs first")
                .details(json!({ "vms": names })),
            LabReserveError::ReplicaGone(_) => ApiError::failed_precondition(text).hint("pull the image again"),
            LabReserveError::Vm { vm, source } => {
                let mut error = ApiError::from(source);
                error.message = format!("VM {vm}: {}", error.message);
                error
            }
            LabReserveError::Stale => ApiError::aborted(text),
            LabReserveError::Refused(error) => error,
            LabReserveError::Store(error) => error.into(),
        }
    }
}

impl Reservations {
    /// Reserves all these VMs in the name of a lab's operation, makes them members of the lab and accepts their creates, all
    /// or nothing. A repeat finds it done.
    ///
    /// # Errors
    /// Nothing was reserved; see the variants. After [`StoreError::Indeterminate`] a repeat tells.
    pub async fn reserve_lab(&self, lab: &LabName, places: &[Place<'_>], fence: Fence) -> Result<(), LabReserveError> {
        let turn = self.turns.acquire().await;
        let mut client = self.store.client().await?;
        let txn = client.transaction().await.map_err(StoreError::from)?;
        // Held against being adopted meanwhile, so that a worker that lost its lease cannot reserve what nobody will release.
        let hold = "select from operations.operation where id = $1 and epoch = $2 and state = 'running' for share";
        let held = txn.query_opt(hold, &[&fence.operation.0, &fence.epoch]).await.map_err(StoreError::from)?;
        if held.is_none() {
            return Err(LabReserveError::Stale);
        }
        if places.is_empty() || accepted(&txn, places).await? {
            return Ok(());
        }
        lock(&txn, places).await?;
        let mut ordered: Vec<&Place<'_>> = places.iter().collect();
        ordered.sort_by(|a, b| a.claim.name.cmp(&b.claim.name));
        for place in ordered {
            let refused = |source| LabReserveError::Vm { vm: place.claim.name.to_string(), source };
            self.reserve_with(&txn, &place.claim).await.map_err(refused)?;
            join(&txn, lab, place).await?;
        }
        // In the order given, which is the one they come up in: ids that are minted then tell who is older.
        for place in places {
            operations::submit_held(&txn, &place.create).await.map_err(LabReserveError::Refused)?;
        }
        let names: Vec<_> = places.iter().map(|place| &place.claim.name).collect();
        outbox::push(&txn, &subject::event("lab", lab, "reserved"), &json!({ "vms": names })).await?;
        txn.commit().await.map_err(StoreError::committing)?;
        drop((client, turn));
        Ok(())
    }
}

async fn accepted(txn: &impl GenericClient, places: &[Place<'_>]) -> Result<bool, StoreError> {
    let ids: Vec<Uuid> = places.iter().map(|place| place.create.id.0).collect();
    let look = "select 1 from operations.operation where id = any($1) limit 1";
    Ok(txn.query_opt(look, &[&ids]).await?.is_some())
}

async fn lock(txn: &impl GenericClient, places: &[Place<'_>]) -> Result<(), LabReserveError> {
    let vms = places.iter().map(|Place { claim, .. }| {
        json!({ "id": claim.id, "name": claim.name, "host": claim.host, "image": claim.image, "image_name": claim.image_name })
    });
    let vms = serde_json::Value::from_iter(vms);
    let disks = places.iter().flat_map(|place| &place.claim.settings.kept_disks);
    let disks: Vec<&str> = disks.map(|disk| disk.name.as_str()).collect();
    let locked = txn.query_one("select vm.lab_lock($1, $2)", &[&vms, &disks]).await.map_err(StoreError::from);
    let taken: Vec<String> = match locked {
        Ok(row) => row.try_get(0).map_err(StoreError::from)?,
        Err(error) => return Err(gone(error)),
    };
    if taken.is_empty() { Ok(()) } else { Err(LabReserveError::NamesTaken(taken)) }
}

fn gone(error: StoreError) -> LabReserveError {
    match db_error(&error) {
        Some(refused) if refused.code().code() == "WR009" => LabReserveError::ReplicaGone(refused.message().to_owned()),
        _ => error.into(),
    }
}

async fn join(txn: &impl GenericClient, lab: &LabName, place: &Place<'_>) -> Result<(), StoreError> {
    let statement =
        txn.prepare_cached("insert into vm.lab_member (vm_id, lab, spec, after) values ($1, $2, $3, $4)").await?;
    let after: Vec<Uuid> = place.after.iter().map(|id| id.0).collect();
    txn.execute(&statement, &[&place.claim.id.0, &lab.as_str(), &json!(place.spec), &after]).await?;
    Ok(())
}

//! A lab's reservation and its reverse: a host for each new VM, then all of them in one transaction.

use std::collections::HashMap;

use contract::{ApiError, HostId, VmId, deadline, vm::CreateRequest};
use operations::{Context, Kind, NewOperation, StepError};
use runtime::telemetry;
use serde_json::json;
use store::StoreError;

use super::{
    children::{self, Child, Node},
    images::Resolved,
    up::{Journal, LabUpOrder, LabVmOrder},
};
use crate::{
    db::{
        host::host_candidates,
        lab::{free_addresses, lab_leave},
        lab_reservation::{LabReserveError, Place},
        reservation::{Claim, ReserveError},
    },
    domain::lab::arrange::{Board, Want, arrange},
    kinds::{
        Delete, Lab,
        create::{self, Create, CreateOrder},
        kernel,
    },
};

/// How often hosts are looked at anew because others filled them meanwhile, before the step rests.
const LOOKS: usize = 8;

/// Reserves the VMs that are to be created, and accepts their creates, held.
pub async fn reserve(cx: &Context, lab: &Lab, order: &LabUpOrder, journal: &Journal) -> Result<(), StepError> {
    let new: Vec<(&LabVmOrder, &Resolved)> =
        journal.new_vms(order).map(|vm| Ok((vm, journal.image(vm)?))).collect::<Result<_, StepError>>()?;
    let orders: Vec<CreateOrder> = new.iter().map(|(vm, image)| create_order(order, vm, image)).collect();
    if orders.is_empty() {
        return Ok(());
    }
    for _ in 0..LOOKS {
        cx.checkpoint()?;
        let hosts = hosts(cx, lab, &new).await?;
        let places = new.iter().zip(&orders).zip(hosts).map(|(((vm, image), create), host)| Place {
            claim: claim(create, image, host),
            spec: &vm.create,
            after: order.ids(journal, &vm.after),
            create: accepted(cx, vm, create),
        });
        match lab.reservations.reserve_lab(&order.lab, &places.collect::<Vec<_>>(), cx.fence()).await {
            Ok(()) => return Ok(()),
            // Others were faster: what they left is looked at.
            Err(LabReserveError::Vm { source: ReserveError::NoRoom { .. } | ReserveError::NoAddress(_), .. }) => {}
            Err(error) => return Err(ApiError::from(error).into()),
        }
    }
    Err(StepError::retry(ApiError::aborted("hosts were filled by others each time the lab was about to be reserved")))
}

async fn hosts(cx: &Context, lab: &Lab, new: &[(&LabVmOrder, &Resolved)]) -> Result<Vec<HostId>, StepError> {
    let (mut wants, mut labs) = (Vec::new(), HashMap::new());
    for (vm, image) in new {
        let kept = create::kept_on(cx, &vm.create).await?;
        let kernel = match &vm.create.features.kernel {
            None => None,
            Some(name) => {
                let known = match labs.get(name) {
                    Some(known) => *known,
                    None => kernel::is_the_labs(cx, name).await?,
                };
                labs.insert(name.clone(), known);
                // One of the lab's comes to whichever host it is.
                (!known).then(|| name.clone())
            }
        };
        let ports = vm.create.features.ports.iter().map(|port| (port.protocol, port.host));
        wants.push(Want {
            name: vm.create.name.clone(),
            needs: create::needs(cx, &vm.create).await?,
            image: image.name.clone(),
            holders: image.hosts.clone(),
            kernel,
            wanted: vm.create.host.clone().or(kept),
            ports: ports.collect(),
        });
    }
    let client = cx.store().client().await?;
    let hosts = host_candidates(&client, lab.reservations.rest()).await?;
    let addresses = free_addresses(&client, lab.reservations.rest()).await?.into_iter().collect();
    drop(client);
    arrange(Board { hosts, addresses }, &wants).map_err(StepError::permanent)
}

/// What its create carries out: the image is the one that was found, whatever bears its name by then.
fn create_order(order: &LabUpOrder, vm: &LabVmOrder, image: &Resolved) -> CreateOrder {
    let mut create = CreateRequest { image: image.id.to_string(), ..vm.create.clone() };
    if create.ssh_keys.is_empty() {
        create.ssh_keys.clone_from(&order.ssh_keys);
    }
    CreateOrder { vm_id: vm.vm_id, create }
}

/// No claim on the VM was taken yet, so none is named: the first is that of its create.
fn claim(create: &CreateOrder, image: &Resolved, host: HostId) -> Claim {
    create::claim(create, (image.id, &image.name), host, None)
}

fn accepted<'a>(cx: &Context, vm: &LabVmOrder, create: &CreateOrder) -> NewOperation<'a> {
    NewOperation {
        id: vm.create_id,
        kind: Create::NAME,
        resource: vm.vm_id.resource(),
        request: json!(create),
        deadline: deadline::CREATE,
        request_key: Some(child(vm).key(cx.operation())),
        request_digest: String::new(),
        traceparent: telemetry::current_traceparent(),
    }
}

/// The create of a new VM.
pub fn child(vm: &LabVmOrder) -> Child {
    Child::new::<Create>(vm.vm_id, &vm.create.name)
}

/// Takes the reservation back: creates are called off, and what they leave is released or deleted.
pub async fn undo(cx: &Context, lab: &Lab, order: &LabUpOrder, journal: &Journal) -> Result<(), StepError> {
    let creates: Vec<Child> = journal.new_vms(order).map(child).collect();
    children::call_off(cx, &creates).await?;
    let ids: Vec<VmId> = creates.iter().map(|create| create.vm).collect();
    lab_leave(&cx.store().client().await?, &ids).await?;
    let seen = children::look(cx, creates.iter()).await?;
    let mut deletes = Vec::new();
    for create in &creates {
        if seen.get(&create.key(cx.operation())).is_some_and(|seen| seen.owed) {
            // Its own undo goes on until it is done.
            continue;
        }
        match lab.reservations.release(create.vm, NEVER_CLAIMED).await {
            Ok(()) => {}
            Err(ReserveError::Stale) => deletes.push(delete(cx, create)),
            Err(error) => return Err(ApiError::from(error).into()),
        }
    }
    unprotect(cx, &deletes).await?;
    let nodes: Vec<Node> = deletes.into_iter().map(|child| Node { child: Some(child), after: Vec::new() }).collect();
    children::drive(cx, "undo", &nodes, true).await
}

/// The epoch of a VM that was reserved with its lab and that no operation on it has claimed.
const NEVER_CLAIMED: i64 = 0;

/// Each claim of the lab's operation tries anew: an undo that is owed is tried until it succeeds.
fn delete(cx: &Context, create: &Child) -> Child {
    Child { attempt: cx.epoch(), force: true, ..Child::new::<Delete>(create.vm, &create.name) }
}

/// The protection came with what is taken back. A host that is silent is not asked again and again: its VMs stay owed.
async fn unprotect(cx: &Context, deletes: &[Child]) -> Result<(), StepError> {
    let ids: Vec<uuid::Uuid> = deletes.iter().map(|Child { vm: VmId(id), .. }| *id).collect();
    let client = cx.store().client().await?;
    let unprotect = "update vm.vm set deletion_protection = false where id = any($1) and deletion_protection";
    client.execute(unprotect, &[&ids]).await.map_err(StoreError::from)?;
    let silent = "select h.id from vm.host h where h.last_seen < clock_timestamp() - make_interval(secs => $2) \
         and exists (select from vm.vm v where v.host_id = h.id and v.id = any($1)) limit 1";
    let down = client
        .query_opt(silent, &[&ids, &deadline::HOST_DOWN.as_secs_f64()])
        .await
        .map_err(StoreError::from)?
        .map(|row| row.get::<_, String>(0));
    match down {
        None => Ok(()),
        Some(host) => {
            Err(StepError::retry(ApiError::unavailable(format!("host {host} is down and has VMs of the lab still"))))
        }
    }
}

//! `vm.lab_up`: see what is there, find the images, reserve all that is missing in one transaction, boot in order, say so.
//!
//! All or nothing: when one VM does not come up, those that this operation created are removed, and those it started are stopped.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use contract::{ApiError, LabName, OperationId, VmId, VmName, deadline, lab::LabPlan, subject, vm::CreateRequest};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{StoreError, outbox};

use super::{
    children::{self, AT_ONCE, Child, Node},
    images::{self, Resolved},
    reserve,
};
use crate::{
    db::lab::{lab_place, lab_present},
    domain::{
        lab::{
            Wanted,
            order::{self, After},
            plan::{self, Action},
        },
        reference::{self, Wanted as WantedImage},
    },
    kinds::{Lab, Pause, Resume, Start, Stop, image},
};

/// Brings a lab up.
pub struct LabUp(pub Arc<Lab>);

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabUpOrder {
    /// The lab.
    pub lab: LabName,
    /// Its VMs, each after those it waits for.
    pub vms: Vec<LabVmOrder>,
    /// For new VMs that name no keys.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
}

/// One VM of a lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabVmOrder {
    /// Its id, minted with the operation, should it be created.
    pub vm_id: VmId,
    /// The id of its create, likewise.
    pub create_id: OperationId,
    /// What is asked for.
    pub create: CreateRequest,
    /// Those that have to be ready before.
    pub after: Vec<VmName>,
}

impl LabUpOrder {
    /// With ids minted in the order in which the VMs come up.
    ///
    /// # Errors
    /// The order is none.
    pub fn new(lab: LabName, wanted: Vec<Wanted>, ssh_keys: Vec<String>) -> Result<Self, ApiError> {
        let levels = order::levels(&order::after(&wanted)?);
        let mut wanted: Vec<(u32, Wanted)> = levels.into_iter().zip(wanted).collect();
        wanted.sort_by_key(|(level, _)| *level);
        let mint = |(_, Wanted { create, after }): (u32, Wanted)| LabVmOrder {
            vm_id: VmId::new(),
            create_id: OperationId::new(),
            create,
            after,
        };
        Ok(Self { lab, vms: wanted.into_iter().map(mint).collect(), ssh_keys })
    }

    fn wanted(&self) -> Vec<Wanted> {
        self.vms.iter().map(|vm| Wanted { create: vm.create.clone(), after: vm.after.clone() }).collect()
    }

    fn after(&self) -> Result<After, StepError> {
        order::after(&self.wanted()).map_err(StepError::permanent)
    }

    /// The ids of VMs of that lab: those they have, or get.
    pub fn ids(&self, journal: &Journal, names: &[VmName]) -> Vec<VmId> {
        let vms = self.vms.iter().zip(&journal.actions).filter(|(vm, _)| names.contains(&vm.create.name));
        vms.map(|(vm, action)| existing(action).unwrap_or(vm.vm_id)).collect()
    }

    /// How long it may take in all: a missing image is pulled first, then one VM after the other in the longest chain.
    pub fn time_limit(&self) -> Duration {
        let reference =
            |vm: &LabVmOrder| matches!(reference::parse(&vm.create.image), Ok(WantedImage::Reference { .. }));
        let pull = if self.vms.iter().any(reference) { deadline::PULL } else { Duration::ZERO };
        let levels = order::after(&self.wanted()).map(|after| order::levels(&after)).unwrap_or_default();
        let chain = levels.into_iter().max().unwrap_or(1);
        let crowd = u32::try_from(self.vms.len() / AT_ONCE).unwrap_or(u32::MAX);
        pull + deadline::CREATE * (chain + crowd)
    }
}

fn existing(action: &Action) -> Option<VmId> {
    match action {
        Action::Create => None,
        Action::Start(vm) | Action::Resume(vm) | Action::Keep(vm) => Some(*vm),
    }
}

/// What the steps found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    /// What is done with each VM, in the order's order; empty until that is known.
    actions: Vec<Action>,
    plan: LabPlan,
    /// The pulls that were needed, until all images are there.
    pulls: Vec<Option<OperationId>>,
    images: BTreeMap<String, Resolved>,
}

impl Journal {
    /// The VMs that are created.
    pub fn new_vms<'a>(&'a self, order: &'a LabUpOrder) -> impl Iterator<Item = &'a LabVmOrder> {
        let new = order.vms.iter().zip(&self.actions).filter(|(_, action)| **action == Action::Create);
        new.map(|(vm, _)| vm)
    }

    /// The image of one of them.
    pub fn image(&self, vm: &LabVmOrder) -> Result<&Resolved, StepError> {
        let missing = || StepError::permanent(ApiError::internal("the journal of this lab lacks an image"));
        self.images.get(&vm.create.image).ok_or_else(missing)
    }

    /// What was there and is started.
    fn woken(&self, order: &LabUpOrder) -> Vec<Child> {
        let child = |(vm, action): (&LabVmOrder, &Action)| woken(&vm.create.name, action);
        order.vms.iter().zip(&self.actions).filter_map(child).collect()
    }
}

fn woken(name: &VmName, action: &Action) -> Option<Child> {
    match action {
        Action::Create | Action::Keep(_) => None,
        Action::Start(vm) => Some(Child::new::<Start>(*vm, name)),
        Action::Resume(vm) => Some(Child::new::<Resume>(*vm, name)),
    }
}

impl Kind for LabUp {
    const NAME: &'static str = "vm.lab_up";
    const COORDINATES: bool = true;
    type Request = LabUpOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Check), Box::new(Images), Box::new(Reserve), Box::new(Boot), Box::new(Finish)]
    }

    fn result(&self, order: &LabUpOrder, journal: &Journal) -> Value {
        let mut result = json!(journal.plan);
        result["lab"] = json!(order.lab);
        result
    }
}

/// Decides what is done with each VM, now that no other operation works on the lab.
struct Check;

#[async_trait]
impl Step<LabUp> for Check {
    fn name(&self) -> &'static str {
        "check"
    }

    async fn run(
        &self,
        cx: &Context,
        kind: &LabUp,
        order: &LabUpOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let wanted = order.wanted();
        let names: Vec<VmName> = order.vms.iter().map(|vm| vm.create.name.clone()).collect();
        let client = cx.store().client().await?;
        let present = lab_present(&client, &kind.0.domain, &order.lab, &names).await?;
        drop(client);
        let planned = plan::plan(&order.lab, &wanted, &present);
        let (actions, plan) = planned.map_err(StepError::permanent)?;
        plan::refuse(&order.lab, &plan).map_err(StepError::permanent)?;
        (journal.actions, journal.plan) = (actions, plan);
        Ok(())
    }
}

/// Finds the images of the new VMs, or has them pulled: nothing is held meanwhile that others could want.
struct Images;

#[async_trait]
impl Step<LabUp> for Images {
    fn name(&self) -> &'static str {
        "images"
    }

    async fn run(&self, cx: &Context, _: &LabUp, order: &LabUpOrder, journal: &mut Journal) -> Result<(), StepError> {
        let mut pulls = Vec::new();
        let new: Vec<&LabVmOrder> = journal.new_vms(order).collect();
        let images = images::resolve(cx, &new, &mut pulls).await;
        journal.pulls = pulls;
        journal.images = images?;
        Ok(())
    }

    /// Pulls that go on only for this lab are cancelled; images that were pulled stay.
    async fn undo(&self, cx: &Context, _: &LabUp, _: &LabUpOrder, journal: &Journal) -> Result<(), StepError> {
        if journal.images.is_empty() {
            for pull in journal.pulls.iter().flatten() {
                image::give_up(cx, *pull).await;
            }
        }
        Ok(())
    }
}

/// Takes names, addresses, room, ports and kept disks of all new VMs, or of none.
struct Reserve;

#[async_trait]
impl Step<LabUp> for Reserve {
    fn name(&self) -> &'static str {
        "reserve"
    }

    async fn run(
        &self,
        cx: &Context,
        kind: &LabUp,
        order: &LabUpOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        reserve::reserve(cx, &kind.0, order, journal).await
    }

    async fn undo(&self, cx: &Context, kind: &LabUp, order: &LabUpOrder, journal: &Journal) -> Result<(), StepError> {
        reserve::undo(cx, &kind.0, order, journal).await
    }
}

/// Creates, starts and resumes, each VM when those it waits for are ready.
struct Boot;

#[async_trait]
impl Step<LabUp> for Boot {
    fn name(&self) -> &'static str {
        "boot"
    }

    async fn run(&self, cx: &Context, _: &LabUp, order: &LabUpOrder, journal: &mut Journal) -> Result<(), StepError> {
        let nodes =
            order.after()?.into_iter().zip(order.vms.iter().zip(&journal.actions)).map(|(after, (vm, action))| {
                let child = match action {
                    Action::Create => Some(reserve::child(vm)),
                    other => woken(&vm.create.name, other),
                };
                Node { child, after }
            });
        let booted = children::drive(cx, "boot", &nodes.collect::<Vec<_>>(), false).await;
        booted.map_err(|mut failure| {
            if failure.error.details.is_some() {
                failure.error.message = format!("lab {} did not come up: {}", order.lab, failure.error.message);
            }
            failure
        })
    }

    /// What was off is off again. What cannot be stopped now is left running: that is no leak.
    async fn undo(&self, cx: &Context, _: &LabUp, order: &LabUpOrder, journal: &Journal) -> Result<(), StepError> {
        let woken = journal.woken(order);
        let creates = journal.new_vms(order).map(reserve::child);
        let all: Vec<Child> = woken.iter().cloned().chain(creates).collect();
        children::call_off(cx, &all).await?;
        let seen = children::look(cx, woken.iter()).await?;
        let succeeded = contract::operation::OperationState::Succeeded;
        let up = woken.iter().filter(|child| {
            // One that somebody else had started meanwhile is somebody else's to stop.
            seen.get(&child.key(cx.operation())).is_some_and(|it| it.state == succeeded && !it.unchanged)
        });
        let back = |child: &Child| match child.kind {
            Start::NAME => Child::new::<Stop>(child.vm, &child.name),
            _ => Child::new::<Pause>(child.vm, &child.name),
        };
        let nodes: Vec<Node> = up.map(|child| Node { child: Some(back(child)), after: Vec::new() }).collect();
        if let Err(failure) = children::drive(cx, "undo", &nodes, true).await {
            cx.checkpoint()?;
            tracing::warn!(lab.name = %order.lab, error = %failure.error, "a VM that a lab started is not stopped again");
        }
        Ok(())
    }
}

/// Writes what the file says now of VMs that were there, and tells that the lab is up.
struct Finish;

#[async_trait]
impl Step<LabUp> for Finish {
    fn name(&self) -> &'static str {
        "finish"
    }

    async fn run(&self, cx: &Context, _: &LabUp, order: &LabUpOrder, journal: &mut Journal) -> Result<(), StepError> {
        let mut client = cx.store().client().await?;
        let txn = client.transaction().await.map_err(StoreError::from)?;
        for (vm, action) in order.vms.iter().zip(&journal.actions) {
            if let Some(id) = existing(action) {
                lab_place(&txn, &order.lab, id, &vm.create, &order.ids(journal, &vm.after)).await?;
            }
        }
        let event = json!({ "created": journal.plan.create, "started": journal.plan.start });
        outbox::push(&txn, &subject::event("lab", &order.lab, "up"), &event).await?;
        txn.commit().await.map_err(StoreError::committing)?;
        Ok(())
    }
}

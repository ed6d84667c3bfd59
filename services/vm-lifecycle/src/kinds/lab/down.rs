//! `vm.lab_down`: see who is there and may go, then delete (or stop) them, dependents before what they depend on.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use contract::{ApiError, LabName, VmId, VmName, deadline, subject};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::outbox;

use super::children::{self, AT_ONCE, Child, Node};
use crate::{
    db::lab::lab_present,
    domain::lab::{
        order::{self, After},
        plan::Present,
    },
    kinds::{Delete, Lab, Stop, delete::protection},
};

/// Takes a lab down.
pub struct LabDown(pub Arc<Lab>);

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabDownOrder {
    /// The lab.
    pub lab: LabName,
    /// Stop its VMs and keep them.
    pub stop: bool,
    /// Do not ask the guests to power off.
    pub force: bool,
    /// Who was there when it was accepted, for the answer to a repeat.
    #[serde(default)]
    pub vms: Vec<VmName>,
}

/// A VM that goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Going {
    /// Its id.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// The places of those that have to be gone before: they wait for this one when the lab comes up.
    pub after: Vec<usize>,
}

/// What the steps found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    going: Vec<Going>,
}

/// A lab's VMs as they go, the first first.
///
/// # Errors
/// `failed_precondition`: one that would be deleted is protected; none is deleted then.
pub fn going(present: &[Present], stop: bool) -> Result<Vec<Going>, ApiError> {
    if !stop {
        let protected: Vec<&Present> = present.iter().filter(|there| there.vm.deletion_protection).collect();
        if let [one] = protected[..] {
            protection(&one.vm)?;
        } else if !protected.is_empty() {
            let names: Vec<_> = protected.iter().map(|there| there.vm.name.as_str()).collect();
            let message = format!("VMs {} are protected against deletion", names.join(", "));
            return Err(ApiError::failed_precondition(message)
                .hint("`warren vm set NAME --deletion-protection off` takes that back"));
        }
    }
    let after = order::reversed(&after(present));
    let levels = order::levels(&after);
    let mut places: Vec<usize> = (0..present.len()).collect();
    places.sort_by_key(|&n| levels[n]);
    let place_of = |n: usize| places.iter().position(|&m| m == n).unwrap_or_default();
    let going = places.iter().map(|&n| Going {
        vm: present[n].vm.id,
        name: present[n].vm.name.clone(),
        after: after[n].iter().map(|&m| place_of(m)).collect(),
    });
    Ok(going.collect())
}

/// Who waits for whom among the VMs that are there.
pub fn after(present: &[Present]) -> After {
    let place = |id: &VmId| present.iter().position(|there| there.vm.id == *id);
    present.iter().map(|there| there.after.iter().filter_map(place).collect()).collect()
}

/// How long it may take in all: one VM after the other in the longest chain.
pub fn time_limit(vms: usize) -> Duration {
    deadline::LIFECYCLE * u32::try_from(vms.min(AT_ONCE) + 1).unwrap_or(u32::MAX)
}

impl Kind for LabDown {
    const NAME: &'static str = "vm.lab_down";
    const COORDINATES: bool = true;
    type Request = LabDownOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Check), Box::new(TakeDown), Box::new(Finish)]
    }

    fn result(&self, order: &LabDownOrder, journal: &Journal) -> Value {
        let vms: Vec<&VmName> = journal.going.iter().map(|going| &going.name).collect();
        json!({ "lab": order.lab, "vms": vms, "stopped": order.stop })
    }
}

/// Notes who goes, now that no other operation works on the lab.
struct Check;

#[async_trait]
impl Step<LabDown> for Check {
    fn name(&self) -> &'static str {
        "check"
    }

    async fn run(
        &self,
        cx: &Context,
        kind: &LabDown,
        order: &LabDownOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let client = cx.store().client().await?;
        let present = lab_present(&client, &kind.0.domain, &order.lab, &[]).await?;
        journal.going = going(&present, order.stop).map_err(StepError::permanent)?;
        Ok(())
    }
}

/// Deletes or stops them. What is deleted stays deleted; an undo only calls off what has not ended.
struct TakeDown;

fn child(order: &LabDownOrder, going: &Going) -> Child {
    let child = if order.stop {
        Child::new::<Stop>(going.vm, &going.name)
    } else {
        Child::new::<Delete>(going.vm, &going.name)
    };
    Child { force: order.force, ..child }
}

#[async_trait]
impl Step<LabDown> for TakeDown {
    fn name(&self) -> &'static str {
        "take-down"
    }

    async fn run(
        &self,
        cx: &Context,
        _: &LabDown,
        order: &LabDownOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let node = |going: &Going| Node { child: Some(child(order, going)), after: going.after.clone() };
        let nodes: Vec<Node> = journal.going.iter().map(node).collect();
        // Somebody else may have deleted one meanwhile.
        children::drive(cx, "take-down", &nodes, true).await
    }

    async fn undo(&self, cx: &Context, _: &LabDown, order: &LabDownOrder, journal: &Journal) -> Result<(), StepError> {
        let all: Vec<Child> = journal.going.iter().map(|going| child(order, going)).collect();
        children::call_off(cx, &all).await
    }
}

/// Tells that the lab is down.
struct Finish;

#[async_trait]
impl Step<LabDown> for Finish {
    fn name(&self) -> &'static str {
        "finish"
    }

    async fn run(
        &self,
        cx: &Context,
        _: &LabDown,
        order: &LabDownOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let vms: Vec<&VmName> = journal.going.iter().map(|going| &going.name).collect();
        let what = if order.stop { "stopped" } else { "down" };
        let client = cx.store().client().await?;
        outbox::push(&client, &subject::event("lab", &order.lab, what), &json!({ "vms": vms })).await?;
        Ok(())
    }
}

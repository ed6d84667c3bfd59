//! `vm.pause` and `vm.resume`: have the host do it, then say so. The one undoes the other.

use std::sync::Arc;

use async_trait::async_trait;
use contract::{ApiError, HostId, operation::VmResult, vm::VmState};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Lab, VmOrder,
    agent::{self, Target},
    rows,
};
use crate::{
    db::vm::Patch,
    domain::state::{self, Event},
};

/// What the steps of both found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    host: Option<HostId>,
    /// It stands where it is wanted already.
    idle: bool,
}

/// Pauses a running VM.
pub struct Pause(pub Arc<Lab>);
/// Resumes a paused VM.
pub struct Resume(pub Arc<Lab>);

trait Halting: Kind<Request = VmOrder, Journal = Journal> {
    /// Whether the VM is paused afterwards.
    const PAUSED: bool;
    fn lab(&self) -> &Lab;
}

macro_rules! kind {
    ($name:ident, $wire:literal, $paused:literal) => {
        impl Kind for $name {
            const NAME: &'static str = $wire;
            type Request = VmOrder;
            type Journal = Journal;

            fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
                vec![Box::new(Look), Box::new(Halt), Box::new(Say)]
            }

            fn result(&self, order: &VmOrder, journal: &Journal) -> Value {
                json!(VmResult { unchanged: journal.idle, ..VmResult::of(order.vm_id, order.name.clone()) })
            }
        }

        impl Halting for $name {
            const PAUSED: bool = $paused;
            fn lab(&self) -> &Lab {
                &self.0
            }
        }
    };
}

kind!(Pause, "vm.pause", true);
kind!(Resume, "vm.resume", false);

fn event(paused: bool) -> Event {
    if paused { Event::Paused } else { Event::Resumed }
}

/// Asks the state machine before anything is done.
struct Look;

#[async_trait]
impl<K: Halting> Step<K> for Look {
    fn name(&self) -> &'static str {
        "look"
    }

    async fn run(&self, cx: &Context, kind: &K, order: &VmOrder, journal: &mut Journal) -> Result<(), StepError> {
        let vm = rows::row(cx, &kind.lab().domain, order.vm_id, &order.name).await?.vm;
        state::apply(vm.state, event(K::PAUSED)).map_err(|denied| {
            let hint = if vm.state == VmState::Stopped {
                "`warren vm start` starts it"
            } else {
                "`warren vm show` tells more"
            };
            let error = ApiError::failed_precondition(format!("VM {}: {denied}", order.name)).hint(hint);
            StepError::permanent(error)
        })?;
        journal.idle = (vm.state == VmState::Paused) == K::PAUSED;
        journal.host = Some(vm.host);
        Ok(())
    }
}

/// Has the host do it, or the reverse.
struct Halt;

impl Halt {
    async fn to(cx: &Context, order: &VmOrder, journal: &Journal, paused: bool) -> Result<(), StepError> {
        let Some(host) = journal.host.as_ref().filter(|_| !journal.idle) else { return Ok(()) };
        agent::pause(cx, Target { host, vm: order.vm_id, name: &order.name }, paused).await
    }
}

#[async_trait]
impl<K: Halting> Step<K> for Halt {
    fn name(&self) -> &'static str {
        if K::PAUSED { "pause" } else { "resume" }
    }

    async fn run(&self, cx: &Context, _: &K, order: &VmOrder, journal: &mut Journal) -> Result<(), StepError> {
        Self::to(cx, order, journal, K::PAUSED).await
    }

    async fn undo(&self, cx: &Context, _: &K, order: &VmOrder, journal: &Journal) -> Result<(), StepError> {
        match Self::to(cx, order, journal, !K::PAUSED).await {
            // It ended meanwhile: there is nothing to be taken back.
            Err(failure) if failure.error.code == contract::ErrorCode::FailedPrecondition => Ok(()),
            outcome => outcome,
        }
    }
}

/// Makes the row say so.
struct Say;

#[async_trait]
impl<K: Halting> Step<K> for Say {
    fn name(&self) -> &'static str {
        "say"
    }

    async fn run(&self, cx: &Context, _: &K, order: &VmOrder, journal: &mut Journal) -> Result<(), StepError> {
        if journal.idle {
            return Ok(());
        }
        let reason = if K::PAUSED { order.reason("paused") } else { None };
        let patch = Patch { acknowledged: true, reason, ..Patch::default() };
        rows::apply(cx, order.vm_id, &order.name, event(K::PAUSED), &patch).await.map(drop)
    }
}

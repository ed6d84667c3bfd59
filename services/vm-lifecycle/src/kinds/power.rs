//! `vm.start`, `vm.stop` and `vm.restart`: the same few steps in three orders, each under the VM claim.
//!
//! Each begins by asking the state machine; a start of a running VM and a stop of a stopped one have nothing to do and say so.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use contract::{ApiError, ErrorCode, HostId, agent::VmKernel, deadline, operation::VmResult, vm::VmState};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Lab, VmOrder,
    agent::{self, Target},
    kernel, rows,
};
use crate::{db::vm::Patch, domain::state::Event};

/// What the steps of all three found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    host: Option<HostId>,
    /// The kernel of the lab's that it boots, if it is one.
    #[serde(default)]
    kernel: Option<VmKernel>,
    /// Where the VM stood when the operation began.
    was: Option<VmState>,
    /// It stands where it is wanted already.
    idle: bool,
    ssh_port: Option<u16>,
}

impl Journal {
    fn target<'a>(&'a self, order: &'a VmOrder) -> Result<Target<'a>, StepError> {
        let host = self
            .host
            .as_ref()
            .ok_or_else(|| StepError::permanent(ApiError::internal("the journal of this operation names no host")))?;
        Ok(Target { host, vm: order.vm_id, name: &order.name })
    }
}

/// Defines a kind over [`VmOrder`] and [`Journal`].
macro_rules! kind {
    ($(#[$doc:meta])* $name:ident, $wire:literal, [$($step:expr),*]) => {
        $(#[$doc])*
        pub struct $name(pub Arc<Lab>);

        impl Kind for $name {
            const NAME: &'static str = $wire;
            type Request = VmOrder;
            type Journal = Journal;

            fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
                vec![$(Box::new($step)),*]
            }

            fn result(&self, order: &VmOrder, journal: &Journal) -> Value {
                json!(VmResult { unchanged: journal.idle, ..VmResult::of(order.vm_id, order.name.clone()) })
            }
        }

        impl Power for $name {
            fn lab(&self) -> &Lab {
                &self.0
            }
        }
    };
}

kind!(
    /// Starts a stopped or failed VM.
    Start, "vm.start", [BeginStart, Kernel, Boot, Ready, Started]);
kind!(
    /// Stops a VM.
    Stop, "vm.stop", [BeginStop, PowerOff, Stopped]);
kind!(
    /// Stops and starts a VM under one claim; a stopped one is only started. Whether it can boot is seen before it is stopped.
    Restart, "vm.restart", [BeginStop, Kernel, PowerOff, BeginStart, Boot, Ready, Started]);

/// What the steps need of their kind.
trait Power: Kind<Request = VmOrder, Journal = Journal> {
    fn lab(&self) -> &Lab;
}

/// Notes where the VM is and stands, once.
async fn look(cx: &Context, kind: &impl Power, order: &VmOrder, journal: &mut Journal) -> Result<(), StepError> {
    let row = rows::row(cx, &kind.lab().domain, order.vm_id, &order.name).await?;
    (journal.host, journal.kernel) = (Some(row.vm.host), row.vm.booted);
    journal.was.get_or_insert(row.vm.state);
    Ok(())
}

/// Makes the row say that the VM is being started.
struct BeginStart;

#[async_trait]
impl<K: Power> Step<K> for BeginStart {
    fn name(&self) -> &'static str {
        "begin-start"
    }

    async fn run(&self, cx: &Context, kind: &K, order: &VmOrder, journal: &mut Journal) -> Result<(), StepError> {
        look(cx, kind, order, journal).await?;
        let (_, now) = rows::apply(cx, order.vm_id, &order.name, Event::Start, &Patch::default()).await?;
        journal.idle = now == VmState::Running;
        Ok(())
    }

    async fn undo(&self, cx: &Context, _: &K, order: &VmOrder, _: &Journal) -> Result<(), StepError> {
        let why = rows::failure(cx).await?;
        let cancelled = why.code == ErrorCode::Cancelled;
        let reason = if cancelled { "its start was cancelled".to_owned() } else { why.message };
        rows::take_back(cx, order.vm_id, Event::StartUndone { cancelled }, Some(reason)).await
    }
}

/// Brings a kernel back that the host has lost. The host keeps it, whatever becomes of the start.
struct Kernel;

#[async_trait]
impl<K: Power> Step<K> for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    async fn run(&self, cx: &Context, _: &K, order: &VmOrder, journal: &mut Journal) -> Result<(), StepError> {
        // What runs already needs no start; a restart starts what stood still too.
        if journal.idle && K::NAME == Start::NAME {
            return Ok(());
        }
        match &journal.kernel {
            Some(kernel) => kernel::bring_back(cx, kernel, journal.target(order)?.host).await,
            None => Ok(()),
        }
    }
}

/// Starts the VMM; undone by ending it.
struct Boot;

#[async_trait]
impl<K: Power> Step<K> for Boot {
    fn name(&self) -> &'static str {
        "boot"
    }

    async fn run(&self, cx: &Context, _: &K, order: &VmOrder, journal: &mut Journal) -> Result<(), StepError> {
        if journal.idle {
            return Ok(());
        }
        agent::boot(cx, journal.target(order)?).await
    }

    async fn undo(&self, cx: &Context, _: &K, order: &VmOrder, journal: &Journal) -> Result<(), StepError> {
        if journal.idle || journal.host.is_none() {
            return Ok(());
        }
        agent::stop(cx, journal.target(order)?, Duration::ZERO).await
    }
}

/// Waits for the guest; undone by `boot`'s undo.
struct Ready;

#[async_trait]
impl<K: Power> Step<K> for Ready {
    fn name(&self) -> &'static str {
        "ready"
    }

    async fn run(&self, cx: &Context, _: &K, order: &VmOrder, journal: &mut Journal) -> Result<(), StepError> {
        if journal.idle {
            return Ok(());
        }
        journal.ssh_port = agent::await_ready(cx, journal.target(order)?).await?.ssh_port;
        Ok(())
    }
}

/// Makes the row say that the VM runs.
struct Started;

#[async_trait]
impl<K: Power> Step<K> for Started {
    fn name(&self) -> &'static str {
        "started"
    }

    async fn run(&self, cx: &Context, _: &K, order: &VmOrder, journal: &mut Journal) -> Result<(), StepError> {
        if journal.idle {
            return Ok(());
        }
        let patch = Patch { acknowledged: true, ssh_port: journal.ssh_port, ..Patch::default() };
        rows::apply(cx, order.vm_id, &order.name, Event::Ready, &patch).await.map(drop)
    }
}

/// Makes the row say that the VM is being stopped.
struct BeginStop;

#[async_trait]
impl<K: Power> Step<K> for BeginStop {
    fn name(&self) -> &'static str {
        "begin-stop"
    }

    async fn run(&self, cx: &Context, kind: &K, order: &VmOrder, journal: &mut Journal) -> Result<(), StepError> {
        look(cx, kind, order, journal).await?;
        let (_, now) = rows::apply(cx, order.vm_id, &order.name, Event::Stop, &Patch::default()).await?;
        journal.idle = now == VmState::Stopped;
        Ok(())
    }

    /// Back to where it was; where a restart got further, its start's undo has the last word.
    async fn undo(&self, cx: &Context, _: &K, order: &VmOrder, journal: &Journal) -> Result<(), StepError> {
        let was = journal.was.unwrap_or(VmState::Failed);
        let reason = format!("its stop was given up: {}", rows::failure(cx).await?.message);
        rows::take_back(cx, order.vm_id, Event::StopUndone { was }, Some(reason)).await
    }
}

/// Has the guest power off, or ends its VMM. Cannot be undone; what is true then, the host's next report tells.
struct PowerOff;

#[async_trait]
impl<K: Power> Step<K> for PowerOff {
    fn name(&self) -> &'static str {
        "power-off"
    }

    async fn run(&self, cx: &Context, _: &K, order: &VmOrder, journal: &mut Journal) -> Result<(), StepError> {
        if journal.idle {
            return Ok(());
        }
        let grace = if order.force { Duration::ZERO } else { deadline::POWER_OFF };
        agent::stop(cx, journal.target(order)?, grace).await
    }
}

/// Makes the row say that the VM is stopped.
struct Stopped;

#[async_trait]
impl<K: Power> Step<K> for Stopped {
    fn name(&self) -> &'static str {
        "stopped"
    }

    async fn run(&self, cx: &Context, _: &K, order: &VmOrder, journal: &mut Journal) -> Result<(), StepError> {
        if journal.idle {
            return Ok(());
        }
        let patch = Patch { acknowledged: true, reason: order.reason("stopped"), ..Patch::default() };
        rows::apply(cx, order.vm_id, &order.name, Event::Stopped, &patch).await.map(drop)
    }
}

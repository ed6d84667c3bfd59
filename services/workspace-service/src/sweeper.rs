//! The **sweeper** removes rows of VMs that are gone, writes what VMs are called now, and settles what is pending of workspaces whose VM
//! runs again. It takes no input: each round asks
//! vm-lifecycle for all VMs that have workspaces. Events are only nudges to begin a round early; what one says may be older than what
//! is known.

use std::time::Duration;

use bus::{Bus, BusError};
use contract::{
    ApiError, VmId,
    agent::{TransferRequest, WorkspaceStatus},
    dns::{RESOLVE_MAX, Resolve, ResolveRequest},
    vm::{self, VmRef},
    worktree::TransferStatus,
};
use futures::{StreamExt, stream::SelectAll};
use store::Store;
use tokio::time::{Instant, timeout_at};

use crate::{
    db::{
        pending::{Unsettled, pending_idle, pending_settle},
        workspace::{vm_renamed, vms_with_workspaces, workspaces_forget},
    },
    domain::access,
    kinds::{self, Ended},
};

/// How often all VMs are asked for when no event is heard.
const EVERY: Duration = Duration::from_secs(30);
/// How many workspaces are settled between two looks at the database.
const SETTLED_AT_ONCE: i64 = 100;
/// How long a round rests after one that an event began: many deletes are one round.
const REST: Duration = Duration::from_millis(300);
/// The pause before events are listened to again.
const RETRY: Duration = Duration::from_secs(1);
/// A VM is gone, may have another name, or may tell what became of a transfer.
const EVENTS: [&str; 3] = ["warren.event.vm.*.deleted", "warren.event.vm.*.changed", "warren.event.vm.*.running"];

/// Sweeps for ever.
pub async fn run(store: Store, bus: Bus) {
    loop {
        if let Err(error) = listen(&store, &bus).await {
            tracing::debug!(%error, "events about VMs are not heard now");
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn listen(store: &Store, bus: &Bus) -> Result<(), BusError> {
    let mut events = SelectAll::new();
    for subject in EVENTS {
        events.push(bus.subscribe(subject.to_owned()).await?);
    }
    loop {
        if let Err(error) = round(store, bus).await {
            tracing::debug!(%error, "VMs cannot be asked for now");
        }
        if let Err(error) = settle_all(store, bus).await {
            tracing::debug!(%error, "what is pending of workspaces cannot be settled now");
        }
        tokio::time::sleep(REST).await;
        if let Ok(None) = timeout_at(Instant::now() + EVERY, events.next()).await {
            return Ok(());
        }
    }
}

async fn round(store: &Store, bus: &Bus) -> Result<(), ApiError> {
    let page = i64::try_from(RESOLVE_MAX).unwrap_or(i64::MAX);
    let mut after: Option<VmId> = None;
    loop {
        let client = store.client().await?;
        let vms = vms_with_workspaces(&client, after, page).await?;
        drop(client);
        after = vms.last().copied();
        if vms.is_empty() {
            return Ok(());
        }
        look(store, bus, &vms).await?;
    }
}

/// A VM that is not there after its workspace was is gone for ever, as ids are not used again.
async fn look(store: &Store, bus: &Bus, vms: &[VmId]) -> Result<(), ApiError> {
    let names = bus.call::<Resolve>(&ResolveRequest { vms: vms.to_vec(), ..ResolveRequest::default() }).await?;
    let mut client = store.client().await?;
    for vm in vms {
        match names.vms.iter().find(|known| known.id == *vm) {
            Some(known) => vm_renamed(&client, *vm, &known.name).await?,
            None => {
                let rows = workspaces_forget(&mut client, *vm).await?;
                tracing::info!(vm.id = %vm, rows, "a VM is gone, and its workspaces are");
            }
        }
    }
    Ok(())
}

/// Settles what operations left that could not ask. Nothing is ended here: what goes on still is looked at in another round.
async fn settle_all(store: &Store, bus: &Bus) -> Result<(), ApiError> {
    let mut after: Option<VmId> = None;
    loop {
        let client = store.client().await?;
        let all = pending_idle(&client, after, SETTLED_AT_ONCE).await?;
        drop(client);
        let Some(last) = all.last() else { return Ok(()) };
        after = Some(last.vm);
        for unsettled in &all {
            if let Err(error) = settle(store, bus, unsettled).await {
                tracing::debug!(vm.id = %unsettled.vm, %error, "a VM does not tell what became of a transfer");
            }
        }
    }
}

async fn settle(store: &Store, bus: &Bus, unsettled: &Unsettled) -> Result<(), ApiError> {
    let vm = bus.call::<vm::Get>(&VmRef { vm: unsettled.vm.to_string() }).await?;
    access::running(&vm)?;
    let request = TransferRequest { vm: vm.id, operation: kinds::asked(&unsettled.pending), wait_ms: 0 };
    let ended = match bus.command::<WorkspaceStatus>(&vm.host, &request).await? {
        TransferStatus::Running { .. } => return Ok(()),
        TransferStatus::Done { summary } => Ended::Done(summary),
        TransferStatus::Failed { .. } | TransferStatus::Unknown => Ended::Nothing,
    };
    if let Some(done) = kinds::outcome(&unsettled.pending.what, ended) {
        pending_settle(&mut store.client().await?, unsettled, done.as_ref()).await?;
        tracing::info!(vm.id = %vm.id, path = unsettled.path, done = done.is_some(), "what was pending of a workspace is settled");
    }
    Ok(())
}

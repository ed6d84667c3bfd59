//! The **sweeper** removes rows of VMs that are gone, and writes what VMs are called now. It takes no input: each round asks
//! vm-lifecycle for all VMs that have workspaces. Events are only nudges to begin a round early; what one says may be older than what
//! is known.

use std::time::Duration;

use bus::{Bus, BusError};
use contract::{
    ApiError, VmId,
    dns::{RESOLVE_MAX, Resolve, ResolveRequest},
};
use futures::{StreamExt, stream::SelectAll};
use store::Store;
use tokio::time::{Instant, timeout_at};

use crate::db::workspace::{vm_renamed, vms_with_workspaces, workspaces_forget};

/// How often all VMs are asked for when no event is heard.
const EVERY: Duration = Duration::from_secs(30);
/// How long a round rests after one that an event began: many deletes are one round.
const REST: Duration = Duration::from_millis(300);
/// The pause before events are listened to again.
const RETRY: Duration = Duration::from_secs(1);
/// A VM is gone, or may have another name.
const EVENTS: [&str; 2] = ["warren.event.vm.*.deleted", "warren.event.vm.*.changed"];

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

//! The **keeper** does to VMs what was asked for in advance: starts those again whose restart policy says so, deletes
//! those whose time is up, and does to those that were idle too long what their limit says. It takes no input: each round looks at all that is due, so a lost round costs its interval.

use std::{collections::BTreeSet, time::Duration};

use contract::{OperationId, VmId, VmName, deadline, idle::IdleAction};
use operations::{Kind, NewOperation, Submitter, submit};
use serde_json::json;
use store::{Store, StoreError};
use tokio_util::sync::CancellationToken;

use crate::{
    db::{
        due::{Due, due_for_delete, due_for_restart},
        idle::{self, due_for_idleness},
    },
    kinds::{Delete, Pause, Start, Stop, VmOrder},
};

/// How often VMs are looked at: half of the shortest pause before a restart.
const EVERY: Duration = Duration::from_millis(500);

/// Keeps until told to stop.
pub async fn run(store: Store, submitter: Submitter, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
        for kind in [Start::NAME, Delete::NAME] {
            if let Err(error) = round(&store, &submitter, kind).await {
                tracing::debug!(%error, kind, "VMs cannot be looked at now");
            }
        }
        if let Err(error) = idle_round(&store, &submitter).await {
            tracing::debug!(%error, "idle VMs cannot be looked at now");
        }
    }
}

/// Accepts one kind of operation for every VM that is due, each in the transaction that makes it due no more.
async fn round(store: &Store, submitter: &Submitter, kind: &'static str) -> Result<(), StoreError> {
    let mut client = store.client().await?;
    let txn = client.transaction().await?;
    let due = if kind == Start::NAME { due_for_restart(&txn).await? } else { due_for_delete(&txn).await? };
    for Due { vm, name } in &due {
        tracing::info!(vm.id = %vm, vm.name = %name, kind, "is due");
        if let Err(error) = submit(&txn, &order(kind, *vm, name, None)).await {
            tracing::warn!(vm.id = %vm, %error, kind, "was not accepted");
            return Ok(());
        }
    }
    txn.commit().await.map_err(StoreError::committing)?;
    drop(client);
    if !due.is_empty() {
        submitter.wake(kind).await;
    }
    Ok(())
}

/// The same for VMs that were idle for as long as they may be, whatever is to be done to each.
async fn idle_round(store: &Store, submitter: &Submitter) -> Result<(), StoreError> {
    let mut client = store.client().await?;
    let txn = client.transaction().await?;
    let due = due_for_idleness(&txn).await?;
    let mut kinds = BTreeSet::new();
    for idle::Due { vm, name, limit } in &due {
        let kind = match limit.action {
            IdleAction::Stop => Stop::NAME,
            IdleAction::Delete => Delete::NAME,
            IdleAction::Pause => Pause::NAME,
        };
        tracing::info!(vm.id = %vm, vm.name = %name, kind, idle_s = limit.seconds, "was idle for long enough");
        if let Err(error) = submit(&txn, &order(kind, *vm, name, Some(limit.seconds))).await {
            tracing::warn!(vm.id = %vm, %error, kind, "was not accepted");
            return Ok(());
        }
        kinds.insert(kind);
    }
    txn.commit().await.map_err(StoreError::committing)?;
    drop(client);
    for kind in kinds {
        submitter.wake(kind).await;
    }
    Ok(())
}

fn order(kind: &'static str, vm: VmId, name: &VmName, idle_seconds: Option<u64>) -> NewOperation<'static> {
    NewOperation {
        id: OperationId::new(),
        kind,
        resource: vm.resource(),
        request: json!(VmOrder { vm_id: vm, name: name.clone(), force: false, idle_seconds }),
        deadline: deadline::LIFECYCLE,
        request_key: None,
        request_digest: String::new(),
        traceparent: None,
    }
}

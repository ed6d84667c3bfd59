//! The **keeper** does to VMs what was asked for in advance: starts those again whose restart policy says so, and deletes
//! those whose time is up. It takes no input: each round looks at all that is due, so a lost round costs its interval.

use std::time::Duration;

use contract::{OperationId, VmId, VmName, deadline};
use operations::{Kind, NewOperation, Submitter, submit};
use serde_json::json;
use store::{Store, StoreError};
use tokio_util::sync::CancellationToken;

use crate::{
    db::due::{Due, due_for_delete, due_for_restart},
    kinds::{Delete, Start, VmOrder},
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
    }
}

/// Accepts one kind of operation for every VM that is due, each in the transaction that makes it due no more.
async fn round(store: &Store, submitter: &Submitter, kind: &'static str) -> Result<(), StoreError> {
    let mut client = store.client().await?;
    let txn = client.transaction().await?;
    let due = if kind == Start::NAME { due_for_restart(&txn).await? } else { due_for_delete(&txn).await? };
    for Due { vm, name } in &due {
        tracing::info!(vm.id = %vm, vm.name = %name, kind, "is due");
        if let Err(error) = submit(&txn, &order(kind, *vm, name)).await {
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

fn order(kind: &'static str, vm: VmId, name: &VmName) -> NewOperation<'static> {
    NewOperation {
        id: OperationId::new(),
        kind,
        resource: vm.resource(),
        request: json!(VmOrder { vm_id: vm, name: name.clone(), force: false }),
        deadline: deadline::LIFECYCLE,
        request_key: None,
        request_digest: String::new(),
        traceparent: None,
    }
}

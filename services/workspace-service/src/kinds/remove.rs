//! `workspace.remove`: have the guest forget a workspace, then forget it here.

use std::time::Duration;

use async_trait::async_trait;
use contract::{
    ApiError, VmName,
    agent::{ForgetRequest, WorkspaceForget},
    worktree::{RemoveOrder, RemoveRequest},
};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    claim_lost,
    host::{self, Target},
    settle,
};
use crate::db::{
    pending::{Pending, What},
    workspace::{workspace_removed, workspaces_of},
};

/// Forgets a workspace.
pub struct Remove {
    /// How long its host may be silent.
    pub patience: Duration,
}

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoveCommand {
    /// The VM.
    pub vm: Target,
    /// The workspace's directory, in plain form.
    pub path: String,
    /// What was asked for.
    pub remove: RemoveRequest,
}

/// Nothing is found out.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Journal {}

impl Kind for Remove {
    const NAME: &'static str = "workspace.remove";
    type Request = RemoveCommand;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Forget)]
    }

    fn result(&self, order: &RemoveCommand, _: &Journal) -> Value {
        json!({ "vm_id": order.vm.id, "path": order.path })
    }
}

/// What is said of a workspace that is not there.
pub fn unknown(vm: &VmName, path: &str) -> ApiError {
    ApiError::not_found(format!("VM {vm} has no workspace at {path}")).hint("`warren workspace ls` lists workspaces")
}

/// Has the guest forget it and removes the row. One step: once the guest has, there is no way back. A repeat finds nothing in the guest.
struct Forget;

#[async_trait]
impl Step<Remove> for Forget {
    fn name(&self) -> &'static str {
        "forget"
    }

    async fn run(&self, cx: &Context, kind: &Remove, order: &RemoveCommand, _: &mut Journal) -> Result<(), StepError> {
        let vm = settle::ready(cx, &order.vm).await?;
        let client = cx.store().client().await?;
        let found = workspaces_of(&client, vm.id).await?.into_iter().find(|workspace| workspace.path == order.path);
        drop(client);
        if let Some(generation) = found.and_then(|workspace| workspace.generation) {
            let pending = Pending { transfer: cx.operation(), what: What::Remove { generation } };
            settle::note(cx, &order.vm, &order.path, &pending).await?;
        }
        let forget = RemoveOrder {
            operation: cx.operation(),
            epoch: cx.epoch(),
            path: order.path.clone(),
            keep_files: order.remove.keep_files,
            force: order.remove.force,
        };
        let request = ForgetRequest { vm: vm.id, order: forget };
        let forgotten = host::command::<WorkspaceForget>(cx, &order.vm, &vm.host, kind.patience, &request).await;
        if let Err(refused) = forgotten {
            // Where the guest does not tell, it stays pending.
            if !refused.retry
                && let Err(error) = settle::call_off(cx, &order.vm, &vm.host, &order.path).await
            {
                tracing::debug!(error = %error.error, "whether a workspace was forgotten is not known");
            }
            return Err(refused);
        }
        runtime::fault::point("workspace.remove/forget/forgotten");
        let mut client = cx.store().client().await?;
        if !workspace_removed(&mut client, cx.fence(), order.vm.id, &order.path).await? {
            return Err(claim_lost());
        }
        Ok(())
    }
}

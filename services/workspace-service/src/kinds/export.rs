//! `workspace.export`: look at the VM, tell its host to begin, watch, and write that the changes were taken out.

use std::time::Duration;

use async_trait::async_trait;
use contract::{
    ApiError, HostId,
    agent::{ExportChangesRequest, WorkspaceExport},
    worktree::{ExportOrder, ExportRequest, TransferSummary, Workspace},
};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    claim_lost,
    host::{self, Target},
    remove::unknown,
};
use crate::db::workspace::{Written, workspace_exported, workspaces_of};

/// Takes the changes of a workspace out.
pub struct Export {
    /// How long its host may be silent.
    pub patience: Duration,
}

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExportCommand {
    /// The VM.
    pub vm: Target,
    /// The workspace's directory, in plain form.
    pub path: String,
    /// What was asked for.
    pub export: ExportRequest,
}

/// What the steps found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    host: Option<HostId>,
    summary: Option<TransferSummary>,
    workspace: Option<Workspace>,
}

impl Journal {
    fn host(&self) -> Result<&HostId, StepError> {
        self.host
            .as_ref()
            .ok_or_else(|| StepError::permanent(ApiError::internal("the journal of this export names no host")))
    }
}

impl Kind for Export {
    const NAME: &'static str = "workspace.export";
    type Request = ExportCommand;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Check), Box::new(Begin), Box::new(Transfer)]
    }

    fn result(&self, _: &ExportCommand, journal: &Journal) -> Value {
        json!({ "workspace": journal.workspace, "summary": journal.summary })
    }
}

/// Reads the VM and the workspace. Has no effect anywhere.
struct Check;

#[async_trait]
impl Step<Export> for Check {
    fn name(&self) -> &'static str {
        "check"
    }

    async fn run(
        &self,
        cx: &Context,
        _: &Export,
        order: &ExportCommand,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let vm = order.vm.running(cx).await?;
        let client = cx.store().client().await?;
        // What was there when the export was accepted may have been removed while it waited.
        if !workspaces_of(&client, vm.id).await?.iter().any(|workspace| workspace.path == order.path) {
            return Err(StepError::permanent(unknown(&vm.name, &order.path)));
        }
        journal.host = Some(vm.host);
        Ok(())
    }
}

/// Has the host begin; a repeat is nothing to it.
struct Begin;

#[async_trait]
impl Step<Export> for Begin {
    fn name(&self) -> &'static str {
        "begin"
    }

    async fn run(
        &self,
        cx: &Context,
        kind: &Export,
        order: &ExportCommand,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let export = ExportOrder {
            operation: cx.operation(),
            epoch: cx.epoch(),
            path: order.path.clone(),
            commits: order.export.commits,
            advance: order.export.advance,
            max_bytes: order.export.max_bytes,
            max_entries: order.export.max_entries,
        };
        let request = ExportChangesRequest { vm: order.vm.id, session: order.export.session, order: export };
        host::command::<WorkspaceExport>(cx, &order.vm, journal.host()?, kind.patience, &request).await?;
        Ok(())
    }

    async fn undo(&self, cx: &Context, _: &Export, order: &ExportCommand, journal: &Journal) -> Result<(), StepError> {
        host::abort(cx, &order.vm, journal.host()?, cx.operation()).await
    }
}

/// Watches the transfer and writes that it is done: one step, as a base that was advanced is not taken back.
struct Transfer;

#[async_trait]
impl Step<Export> for Transfer {
    fn name(&self) -> &'static str {
        "transfer"
    }

    async fn run(
        &self,
        cx: &Context,
        kind: &Export,
        order: &ExportCommand,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let summary = host::watch(cx, &order.vm, journal.host()?, kind.patience, cx.operation()).await?;
        runtime::fault::point("workspace.export/transfer/taken");
        let advanced = order.export.advance.then(|| cx.operation());
        let mut client = cx.store().client().await?;
        match workspace_exported(&mut client, cx.fence(), order.vm.id, &order.path, advanced).await? {
            Written::Yes(workspace) => journal.workspace = Some(*workspace),
            Written::ClaimLost => return Err(claim_lost()),
            // The changes are with the client all the same.
            Written::Gone => tracing::info!(vm.id = %order.vm.id, "the VM of an exported workspace is gone"),
        }
        journal.summary = Some(summary);
        Ok(())
    }
}

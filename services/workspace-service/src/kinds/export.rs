//! `workspace.export`: look at the VM, tell its host to begin, watch, and write that the changes were taken out.

use std::time::Duration;

use async_trait::async_trait;
use contract::{
    agent::{ExportChangesRequest, WorkspaceExport},
    worktree::{ExportOrder, ExportRequest},
};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    claim_lost,
    host::{self, Target},
    journal::Journal,
    remove::unknown,
    settle,
};
use crate::db::{
    pending::{Pending, What},
    workspace::{Written, workspace_exported, workspaces_of},
};

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

impl Kind for Export {
    const NAME: &'static str = "workspace.export";
    type Request = ExportCommand;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Check), Box::new(Begin), Box::new(Transfer)]
    }

    fn result(&self, _: &ExportCommand, journal: &Journal) -> Value {
        journal.result()
    }
}

/// Reads the VM and the workspace.
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
        let vm = settle::ready(cx, &order.vm).await?;
        let client = cx.store().client().await?;
        // What was there when the export was accepted may have been removed while it waited.
        if !workspaces_of(&client, vm.id).await?.iter().any(|it| it.path == order.path && it.generation.is_some()) {
            return Err(StepError::permanent(unknown(&vm.name, &order.path)));
        }
        journal.host = Some(vm.host);
        Ok(())
    }

    /// Ends what was begun; a base that was advanced all the same is the workspace's.
    async fn undo(&self, cx: &Context, _: &Export, order: &ExportCommand, journal: &Journal) -> Result<(), StepError> {
        let Some(host) = &journal.host else { return Ok(()) };
        host::abort(cx, &order.vm, host, cx.operation()).await?;
        settle::call_off(cx, &order.vm, host, &order.path).await
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
        if order.export.advance {
            let pending = Pending { transfer: cx.operation(), what: What::Advance };
            settle::note(cx, &order.vm, &order.path, &pending).await?;
        }
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

//! `workspace.prepare`: look at the VM, tell its host to begin, watch, and write what was prepared.

use std::time::Duration;

use async_trait::async_trait;
use contract::{
    ApiError, HostId, OperationId, WorkspaceId,
    agent::{ImportFrom, ImportRequest, WorkspaceImport},
    worktree::{About, ImportOrder, PrepareRequest, Source, TransferSummary},
};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    claim_lost,
    host::{self, Target},
    journal::Journal,
    serve::{Served, serve},
    settle,
};
use crate::{
    db::pending::{Pending, What},
    db::workspace::{Prepared, Written, workspace_prepared, workspace_reserve, workspace_unreserve, workspaces_of},
    domain::place,
    served::Sources,
};

/// How many workspaces one VM may have: enough for a tree of services, and few enough for one look at all of them.
const WORKSPACES_MAX: usize = 64;

/// Puts a tree of files into a VM.
pub struct Prepare {
    /// How long its host may be silent.
    pub patience: Duration,
    /// Where trees come from that nobody hands in.
    pub sources: Sources,
}

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PrepareCommand {
    /// The VM.
    pub vm: Target,
    /// The workspace's id, minted with the operation, unless there is one at that place.
    pub workspace: WorkspaceId,
    /// What was asked for; its path is in plain form.
    pub prepare: PrepareRequest,
}

impl Kind for Prepare {
    const NAME: &'static str = "workspace.prepare";
    type Request = PrepareCommand;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Check), Box::new(Begin), Box::new(Transfer)]
    }

    fn result(&self, _: &PrepareCommand, journal: &Journal) -> Value {
        journal.result()
    }
}

/// Reads the VM, and makes the workspace's row.
struct Check;

#[async_trait]
impl Step<Prepare> for Check {
    fn name(&self) -> &'static str {
        "check"
    }

    async fn run(
        &self,
        cx: &Context,
        _: &Prepare,
        order: &PrepareCommand,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let vm = settle::ready(cx, &order.vm).await?;
        let client = cx.store().client().await?;
        let path = &order.prepare.path;
        let others = workspaces_of(&client, vm.id).await?;
        let others: Vec<&str> = others.iter().map(|other| other.path.as_str()).filter(|other| other != path).collect();
        if let Some(other) = others.iter().find(|other| place::within(other, path) || place::within(path, other)) {
            return Err(StepError::permanent(nested(path, other)));
        }
        if others.len() >= WORKSPACES_MAX {
            let error = ApiError::new(
                contract::ErrorCode::ResourceExhausted,
                format!("VM {} has {WORKSPACES_MAX} workspaces", vm.name),
            );
            return Err(StepError::permanent(error.hint("`warren workspace rm` forgets one")));
        }
        workspace_reserve(&client, order.workspace, vm.id, &vm.name, path).await?;
        journal.host = Some(vm.host);
        Ok(())
    }

    /// Ends what was begun. A tree that stands all the same is a workspace, whatever became of the operation.
    async fn undo(
        &self,
        cx: &Context,
        _: &Prepare,
        order: &PrepareCommand,
        journal: &Journal,
    ) -> Result<(), StepError> {
        // Here rather than beside `begin`: a worker may have died in that one, and what is not recorded is not undone.
        if let Some(host) = &journal.host {
            settle::call_off(cx, &order.vm, host, &order.prepare.path).await?;
        }
        let client = cx.store().client().await?;
        Ok(workspace_unreserve(&client, order.vm.id, &order.prepare.path).await?)
    }
}

fn nested(path: &str, other: &str) -> ApiError {
    ApiError::failed_precondition(format!("{path} and the workspace {other} lie within each other"))
        .hint("choose another `path`, or remove that workspace first")
}

/// Has the host begin; a repeat is nothing to it.
struct Begin;

#[async_trait]
impl Step<Prepare> for Begin {
    fn name(&self) -> &'static str {
        "begin"
    }

    async fn run(
        &self,
        cx: &Context,
        kind: &Prepare,
        order: &PrepareCommand,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let from = match &order.prepare.source {
            Source::Upload { session, .. } => ImportFrom::Session(*session),
            Source::Host { path } => ImportFrom::Directory(path.clone()),
            // Begun when it is fetched, by whoever sends it.
            Source::Git { .. } | Source::Object(_) => return Ok(()),
        };
        let host = journal.host()?;
        let about = about(&order.prepare.source, host);
        note(cx, order, cx.operation(), &about).await?;
        runtime::fault::point("workspace.prepare/begin/noted");
        let import = import_order(cx, order, cx.operation(), about);
        let request = ImportRequest { vm: order.vm.id, from, order: import };
        host::command::<WorkspaceImport>(cx, &order.vm, host, kind.patience, &request).await?;
        Ok(())
    }
}

/// Watches the transfer and writes what it did. One step: once the tree stands there is no way back, so a cancel must not come between
/// the two. A repeat finds the transfer done and writes the same.
struct Transfer;

#[async_trait]
impl Step<Prepare> for Transfer {
    fn name(&self) -> &'static str {
        "transfer"
    }

    async fn run(
        &self,
        cx: &Context,
        kind: &Prepare,
        order: &PrepareCommand,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let host = journal.host()?;
        let source = &order.prepare.source;
        let Served { transfer, about, summary } = if Sources::serves(source) {
            serve(cx, kind, order, host).await?
        } else {
            let summary = host::watch(cx, &order.vm, host, kind.patience, cx.operation()).await?;
            Served { transfer: cx.operation(), about: about(source, host), summary }
        };
        runtime::fault::point("workspace.prepare/transfer/placed");
        match record(cx, order, transfer, &about, &summary).await? {
            Written::Yes(workspace) => journal.workspace = Some(*workspace),
            Written::ClaimLost => return Err(claim_lost()),
            Written::Gone => return Err(StepError::permanent(order.vm.deleted())),
        }
        journal.summary = Some(summary);
        Ok(())
    }
}

/// Notes the transfer that is about to begin.
pub async fn note(cx: &Context, order: &PrepareCommand, transfer: OperationId, about: &About) -> Result<(), StepError> {
    let what = What::Prepare { about: about.clone(), owner: order.prepare.owner.clone() };
    settle::note(cx, &order.vm, &order.prepare.path, &Pending { transfer, what }).await
}

/// Writes what stands in the VM now.
async fn record(
    cx: &Context,
    order: &PrepareCommand,
    transfer: OperationId,
    about: &About,
    summary: &TransferSummary,
) -> Result<Written, StepError> {
    let prepared = Prepared {
        vm: order.vm.id,
        path: &order.prepare.path,
        owner: order.prepare.owner.as_deref(),
        about,
        generation: transfer,
        summary,
    };
    let mut client = cx.store().client().await?;
    Ok(workspace_prepared(&mut client, cx.fence(), prepared).await?)
}

/// What a tree is said to be taken from, as far as that is known before it is fetched.
fn about(source: &Source, host: &HostId) -> About {
    match source {
        Source::Upload { about, .. } => about.clone(),
        Source::Host { path } => About { origin: format!("{host}:{path}"), ..About::default() },
        Source::Git { url: origin, .. } | Source::Object(origin) => {
            About { origin: origin.clone(), ..About::default() }
        }
    }
}

/// What the guest is told.
pub fn import_order(cx: &Context, order: &PrepareCommand, transfer: OperationId, about: About) -> ImportOrder {
    let prepare = &order.prepare;
    ImportOrder {
        operation: transfer,
        epoch: cx.epoch(),
        path: prepare.path.clone(),
        owner: prepare.owner.clone(),
        placing: prepare.placing,
        force: prepare.force,
        clean: prepare.clean,
        about,
    }
}

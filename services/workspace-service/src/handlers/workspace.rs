//! A **workspace** as requests name it: by its VM and, where that has several, its directory.

use std::{sync::Arc, time::Duration};

use bus::{CallOptions, RequestContext};
use contract::{
    ApiError, OperationId, deadline,
    operation::Operation,
    vm::{self, Vm, VmRef},
    worktree::{Workspace, WorkspaceRef},
};
use operations::{Kind, NewOperation, answer};
use serde_json::{Value, json};
use store::StoreError;
use uuid::Uuid;

use super::App;
use crate::{db::workspace::workspaces_of, domain::place, kinds};

/// How long vm-lifecycle may take to say where a VM is: one SQL statement.
const LOOKUP: Duration = Duration::from_secs(4);

/// The VM of that name or id, in whichever state.
///
/// # Errors
/// `not_found`, or vm-lifecycle cannot be asked.
pub async fn vm(app: &App, name_or_id: &str) -> Result<Vm, ApiError> {
    let options = CallOptions { timeout: Some(LOOKUP), ..CallOptions::default() };
    app.bus.call_with::<vm::Get>(&VmRef { vm: name_or_id.to_owned() }, options).await
}

/// The workspace at that path, or the VM's only one.
///
/// # Errors
/// `not_found`; `invalid_argument` when the VM has several and none is named.
pub async fn find(app: &App, vm: &Vm, path: Option<&str>) -> Result<Workspace, ApiError> {
    let path = path.map(place::path).transpose()?;
    let client = app.store.client().await?;
    let mut all = workspaces_of(&client, vm.id).await?;
    drop(client);
    if let Some(path) = path {
        let found = all.into_iter().find(|workspace| workspace.path == path);
        return found.ok_or_else(|| kinds::unknown(&vm.name, &path));
    }
    match all.len() {
        0 => Err(ApiError::not_found(format!("VM {} has no workspace", vm.name))
            .hint("`warren workspace prepare` puts one into it")),
        1 => Ok(all.remove(0)),
        _ => {
            let paths: Vec<_> = all.iter().map(|workspace| workspace.path.as_str()).collect();
            Err(ApiError::invalid_argument(format!("VM {} has several workspaces: {}", vm.name, paths.join(", ")))
                .hint("say which with `path`")
                .details(json!({ "paths": paths })))
        }
    }
}

/// `warren.workspace.get`: shows one workspace.
pub async fn get(app: Arc<App>, _: RequestContext, request: WorkspaceRef) -> Result<Workspace, ApiError> {
    let vm = vm(&app, &request.vm).await?;
    let found = find(&app, &vm, request.path.as_deref()).await?;
    Ok(Workspace { vm_name: vm.name, ..found })
}

/// Refuses a `timeout_ms` out of range before an operation is made that nobody would wait for.
pub fn check_timeout(timeout_ms: u64) -> Result<(), ApiError> {
    if (1..=deadline::WAIT_MAX_MS).contains(&timeout_ms) {
        return Ok(());
    }
    Err(ApiError::invalid_argument(format!("`timeout_ms` cannot be {timeout_ms}"))
        .hint(format!("it is 1 to {}", deadline::WAIT_MAX_MS)))
}

/// How a reply is to be given.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Hold it until the operation has ended.
    pub wait: bool,
    /// For how long, in milliseconds.
    pub timeout_ms: u64,
}

/// Accepts an operation on a VM's workspaces. What `order` makes of the VM and the request is not asked where this
/// request was accepted before: a repeat is answered like the first, whatever became of the VM.
pub async fn accept<K: Kind>(
    app: &App,
    context: RequestContext,
    waiting: Waiting,
    time: Duration,
    order: impl Future<Output = Result<(Vm, Value), ApiError>>,
) -> Result<Operation, ApiError> {
    check_timeout(waiting.timeout_ms)?;
    let operation = match earlier::<K>(app, &context).await? {
        Some(operation) => operation,
        None => {
            let (vm, request) = order.await?;
            let new = NewOperation {
                id: OperationId::new(),
                kind: K::NAME,
                resource: vm.id.workspaces(),
                request,
                deadline: time,
                request_key: context.request_key,
                request_digest: context.body_digest,
                traceparent: context.traceparent,
            };
            app.submitter.submit(&new).await?
        }
    };
    answer(&app.submitter, operation, waiting.wait, waiting.timeout_ms).await
}

/// The operation accepted with this key and request before, if any.
async fn earlier<K: Kind>(app: &App, context: &RequestContext) -> Result<Option<Operation>, ApiError> {
    let Some(key) = &context.request_key else { return Ok(None) };
    let client = app.store.client().await?;
    let query = "select id from operations.operation where kind = $1 and request_key = $2 and request_digest = $3";
    let statement = client.prepare_cached(query).await.map_err(StoreError::from)?;
    let row = client.query_opt(&statement, &[&K::NAME, key, &context.body_digest]).await.map_err(StoreError::from)?;
    drop(client);
    match row {
        None => Ok(None),
        Some(row) => operations::get(&app.store, OperationId(row.get::<_, Uuid>(0))).await.map(Some),
    }
}

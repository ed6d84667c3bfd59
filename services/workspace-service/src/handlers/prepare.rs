//! `warren.workspace.prepare`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{ApiError, WorkspaceId, deadline, operation::Operation, worktree::PrepareRequest};
use serde_json::json;

use super::{
    App,
    workspace::{self, Waiting},
};
use crate::{
    domain::{access, place, source},
    kinds::{Prepare, PrepareCommand, Target},
};

/// Accepts a prepare. A VM that does not run is refused at once; one that stops meanwhile is found out by the operation.
pub async fn handle(app: Arc<App>, context: RequestContext, request: PrepareRequest) -> Result<Operation, ApiError> {
    let prepare = PrepareRequest { path: place::path(&request.path)?, ..request };
    prepare.owner.as_deref().map_or(Ok(()), place::owner)?;
    source::check(&prepare.source)?;
    let waiting = Waiting { wait: prepare.wait, timeout_ms: prepare.timeout_ms };
    let order = async {
        let vm = workspace::vm(&app, &prepare.vm).await?;
        access::running(&vm)?;
        let order = PrepareCommand { vm: Target::of(&vm), workspace: WorkspaceId::new(), prepare };
        Ok((vm, json!(order)))
    };
    workspace::accept::<Prepare>(&app, context, waiting, deadline::TRANSFER, order).await
}

//! `warren.workspace.remove`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{ApiError, deadline, operation::Operation, worktree::RemoveRequest};
use serde_json::json;

use super::{
    App,
    workspace::{self, Waiting},
};
use crate::{
    domain::access,
    kinds::{Remove, RemoveCommand, Target},
};

/// Accepts a removal.
pub async fn handle(app: Arc<App>, context: RequestContext, request: RemoveRequest) -> Result<Operation, ApiError> {
    let waiting = Waiting { wait: request.wait, timeout_ms: request.timeout_ms };
    let order = async {
        let vm = workspace::vm(&app, &request.vm).await?;
        access::running(&vm)?;
        let path = workspace::find(&app, &vm, request.path.as_deref()).await?.path;
        let order = RemoveCommand { vm: Target::of(&vm), path, remove: request };
        Ok((vm, json!(order)))
    };
    workspace::accept::<Remove>(&app, context, waiting, deadline::LIFECYCLE, order).await
}

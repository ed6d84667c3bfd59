//! `warren.workspace.export`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{ApiError, deadline, operation::Operation, worktree::ExportRequest};
use serde_json::json;

use super::{
    App,
    workspace::{self, Waiting},
};
use crate::{
    domain::access,
    kinds::{Export, ExportCommand, Target},
};

/// Accepts an export.
pub async fn handle(app: Arc<App>, context: RequestContext, request: ExportRequest) -> Result<Operation, ApiError> {
    if request.max_bytes == 0 || request.max_entries == 0 {
        return Err(ApiError::invalid_argument("`max_bytes` and `max_entries` are 1 or more")
            .hint("leave them out for the usual limits"));
    }
    let waiting = Waiting { wait: request.wait, timeout_ms: request.timeout_ms };
    let order = async {
        let vm = workspace::vm(&app, &request.vm).await?;
        access::running(&vm)?;
        let path = workspace::find(&app, &vm, request.path.as_deref()).await?.path;
        let order = ExportCommand { vm: Target::of(&vm), path, export: request };
        Ok((vm, json!(order)))
    };
    workspace::accept::<Export>(&app, context, waiting, deadline::TRANSFER, order).await
}

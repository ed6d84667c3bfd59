//! `warren.workspace.list`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    worktree::{ListRequest, Workspaces},
};

use super::{App, workspace};
use crate::db::workspace::workspace_list;

/// The most workspaces of one page.
const PAGE_MAX: u32 = 1000;
/// As many as a page has when the request says nothing.
const PAGE: u32 = 100;
/// How many bytes of workspaces one reply holds: paths and origins may be long, and a NATS message holds 1 MiB.
const REPLY_BYTES: usize = 700 * 1024;

/// Lists a page of workspaces by id.
pub async fn handle(app: Arc<App>, _: RequestContext, request: ListRequest) -> Result<Workspaces, ApiError> {
    let limit = request.limit.unwrap_or(PAGE);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(
            ApiError::invalid_argument(format!("`limit` cannot be {limit}")).hint(format!("it is 1 to {PAGE_MAX}"))
        );
    }
    let vm = match &request.vm {
        Some(vm) => Some(workspace::vm(&app, vm).await?.id),
        None => None,
    };
    let client = app.store.client().await?;
    let mut workspaces = workspace_list(&client, vm, request.after, limit).await?;
    let found = workspaces.len();
    workspaces.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let mut bytes = 0;
    let fits = workspaces.iter().position(|workspace| {
        bytes += serde_json::to_vec(workspace).map_or(0, |text| text.len() + 1);
        bytes > REPLY_BYTES
    });
    if let Some(fits) = fits {
        workspaces.truncate(fits.max(1));
    }
    let more = found > workspaces.len();
    Ok(Workspaces { workspaces, more })
}

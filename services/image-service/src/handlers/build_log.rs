//! `warren.image.build_log`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bus::RequestContext;
use contract::{
    ApiError, ImageName, OperationId,
    image::{BuildLog, BuildLogRequest, LOG_PAGE_MAX, LOG_WAIT_MAX_MS},
};
use operations::Kind;

use super::App;
use crate::{
    db::build_log::{build_of, log_read},
    kinds::Build,
};

/// How often a waiting reader looks for more.
const LOOK: Duration = Duration::from_millis(200);

/// Reads a piece of a build's log; waits for one while the build goes on.
pub async fn handle(app: Arc<App>, _: RequestContext, request: BuildLogRequest) -> Result<BuildLog, ApiError> {
    if !(1..=LOG_PAGE_MAX).contains(&request.limit) {
        return Err(ApiError::invalid_argument(format!("`limit` cannot be {}", request.limit))
            .hint(format!("it is 1 to {LOG_PAGE_MAX}")));
    }
    if request.wait_ms > LOG_WAIT_MAX_MS {
        return Err(ApiError::invalid_argument(format!("`wait_ms` cannot be {}", request.wait_ms))
            .hint(format!("it is up to {LOG_WAIT_MAX_MS}")));
    }
    let build = find(&app, &request.build).await?;
    let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let give_up = Instant::now() + Duration::from_millis(request.wait_ms);
    loop {
        // Looked at first: what a build wrote before its end is read after.
        let operation = operations::get(&app.store, build).await?;
        if operation.kind != Build::NAME {
            return Err(ApiError::not_found(format!("the operation {build} is no build but {}", operation.kind))
                .hint("`warren op ls` lists the operations"));
        }
        let client = app.store.client().await?;
        let piece = log_read(&client, build, request.offset, limit).await?;
        drop(client);
        let state = operation.state;
        let ended = state.is_final() && piece.data.is_empty();
        if !piece.data.is_empty() || ended || Instant::now() >= give_up {
            let text = String::from_utf8_lossy(&piece.data).into_owned();
            return Ok(BuildLog { operation: build, missing: piece.missing, text, next: piece.next, ended, state });
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn find(app: &App, build: &str) -> Result<OperationId, ApiError> {
    if let Ok(id) = build.parse() {
        return Ok(id);
    }
    let name: ImageName = build.parse().map_err(|error| {
        ApiError::invalid_argument(format!("{error}")).hint("name an operation by its id, or an image by its name")
    })?;
    let client = app.store.client().await?;
    let found = build_of(&client, &Build::resource(&name), Build::NAME).await?;
    found.ok_or_else(|| {
        ApiError::not_found(format!("no build of an image {name} is remembered"))
            .hint("builds are remembered as long as operations are; `warren op ls` lists them")
    })
}

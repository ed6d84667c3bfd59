//! `warren.workspace.open`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    direct::Opened,
    workspace::{OpenRequest, SessionKind},
};

use super::{
    App,
    session::{self, OPENING},
};
use crate::domain::command;

/// Has a VM's host connect the caller's byte stream.
pub async fn handle(app: Arc<App>, _: RequestContext, request: OpenRequest) -> Result<Opened, ApiError> {
    if let SessionKind::Exec(command) = &request.kind {
        command::check(command)?;
        if command.detach {
            return Err(ApiError::invalid_argument("a detached command has no stream")
                .hint("start it with `warren.workspace.exec` and open a stream of the kind `attach`"));
        }
    }
    let opening = async {
        let vm = session::find(&app.bus, &request.vm, &request.kind).await?;
        session::connect(&app.bus, &vm, request.session, request.kind, request.direct).await
    };
    match tokio::time::timeout(OPENING, opening).await {
        Ok(opened) => opened,
        Err(_) => Err(ApiError::deadline_exceeded(format!(
            "the VM's host did not answer within {} s",
            OPENING.as_secs()
        ))
        .hint("open again with a fresh session; this one may still be connected, and ends when its opener is gone")),
    }
}

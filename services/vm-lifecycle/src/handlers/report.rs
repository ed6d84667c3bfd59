//! `warren.host.report`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    host::{Empty, ReportRequest},
};

use super::{App, superseded};
use crate::db::{
    host::{Heard, host_heartbeat},
    observation::observation_apply,
};

/// Applies what became of VMs by themselves.
pub async fn handle(app: Arc<App>, _: RequestContext, request: ReportRequest) -> Result<Empty, ApiError> {
    match host_heartbeat(&app.store, &request.host, request.incarnation, None, None).await? {
        Heard::Current => {}
        Heard::Superseded => return Err(superseded(&request.host)),
        Heard::Unknown => {
            return Err(ApiError::failed_precondition(format!("host {} is not registered", request.host))
                .hint("register first"));
        }
    }
    for seen in &request.vms {
        observation_apply(&app.store, &request.host, seen).await?;
    }
    Ok(Empty {})
}

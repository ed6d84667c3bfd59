//! `warren.host.activity`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    idle::{ActivityReply, ActivityRequest},
};

use super::{App, superseded};
use crate::db::{
    host::{Heard, host_heartbeat},
    idle::activity_apply,
};

/// Notes how long a host's VMs are idle.
pub async fn handle(app: Arc<App>, _: RequestContext, request: ActivityRequest) -> Result<ActivityReply, ApiError> {
    match host_heartbeat(&app.store, &request.host, request.incarnation, None, None).await? {
        Heard::Current => {}
        Heard::Superseded => return Err(superseded(&request.host)),
        Heard::Unknown => {
            return Err(ApiError::failed_precondition(format!("host {} is not registered", request.host))
                .hint("register first"));
        }
    }
    Ok(ActivityReply { limited: activity_apply(&app.store, &request.host, &request.vms).await? })
}

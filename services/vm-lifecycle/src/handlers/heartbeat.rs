//! `warren.host.heartbeat`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    host::{HeartbeatReply, HeartbeatRequest},
};

use super::{App, superseded};
use crate::db::host::{Heard, host_heartbeat};

/// Notes that a host lives.
pub async fn handle(app: Arc<App>, _: RequestContext, request: HeartbeatRequest) -> Result<HeartbeatReply, ApiError> {
    let (capacity, kernels) = (Some(request.capacity), request.kernels.as_deref());
    match host_heartbeat(&app.store, &request.host, request.incarnation, capacity, kernels).await? {
        Heard::Current => Ok(HeartbeatReply { register: false }),
        Heard::Unknown => Ok(HeartbeatReply { register: true }),
        Heard::Superseded => Err(superseded(&request.host)),
    }
}

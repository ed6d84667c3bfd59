//! `warren.host.register`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    host::{RegisterRequest, Registered},
};

use super::{App, superseded};
use crate::db::{
    host::{Registration, host_register},
    observation::{observation_apply, observation_missing, observation_orphans},
};

/// Takes a host into the lab, applies what it sees, and tells it what it is and what it should not have.
pub async fn handle(app: Arc<App>, _: RequestContext, request: RegisterRequest) -> Result<Registered, ApiError> {
    let share = match host_register(&app.store, app.network, app.host_prefix, &request).await? {
        Registration::Done(share) => share,
        Registration::Superseded => return Err(superseded(&request.host)),
        Registration::NetworkFull => {
            return Err(ApiError::resource_exhausted(format!(
                "the lab's network {} has no free /{} left for host {}",
                app.network, app.host_prefix, request.host
            ))
            .hint("give vm-lifecycle a larger WARREN_LAB_NETWORK"));
        }
    };
    let missing = observation_missing(&app.store, &request.host, &request.vms).await?;
    for seen in request.vms.iter().chain(&missing) {
        observation_apply(&app.store, &request.host, seen).await?;
    }
    let orphans = observation_orphans(&app.store, &request.host, &request.vms).await?;
    tracing::info!(host.id = %request.host, host.vmm = %request.vmm, vms = request.vms.len(), orphans = orphans.len(), "a host registered");
    Ok(Registered { subnet: share.subnet, gateway: share.gateway, domain: app.lab.domain.clone(), orphans })
}

//! `warren.host.list`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    host::{Empty, HostList},
};

use super::App;
use crate::db::host::host_list;

/// Lists the lab's hosts.
pub async fn handle(app: Arc<App>, _: RequestContext, _: Empty) -> Result<HostList, ApiError> {
    let client = app.store.client().await?;
    Ok(HostList { hosts: host_list(&client).await? })
}

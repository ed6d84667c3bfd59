//! `warren.vm.list`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    vm::{ListRequest, VmList},
};

use super::App;
use crate::db::vm::vm_list;

/// The most VMs of one page: about half of what a NATS message holds.
const PAGE_MAX: u32 = 500;

/// Lists a page of VMs by name.
pub async fn handle(app: Arc<App>, _: RequestContext, request: ListRequest) -> Result<VmList, ApiError> {
    if !(1..=PAGE_MAX).contains(&request.limit) {
        return Err(ApiError::invalid_argument(format!("`limit` cannot be {}", request.limit))
            .hint(format!("it is 1 to {PAGE_MAX}")));
    }
    let client = app.store.client().await?;
    let mut rows = vm_list(&client, &app.lab.domain, &request, request.limit).await?;
    let page = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let more = rows.len() > page;
    rows.truncate(page);
    Ok(VmList { vms: rows.into_iter().map(|row| row.vm).collect(), more })
}

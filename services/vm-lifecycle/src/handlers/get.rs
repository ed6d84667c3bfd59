//! `warren.vm.get`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    vm::{Vm, VmRef},
};

use super::App;
use crate::db::vm::{VmRow, vm_find};

/// Shows one VM.
pub async fn handle(app: Arc<App>, _: RequestContext, request: VmRef) -> Result<Vm, ApiError> {
    Ok(find(&app, &request.vm).await?.vm)
}

/// The VM of that name or id.
///
/// # Errors
/// `not_found`, or the database could not.
pub async fn find(app: &App, name_or_id: &str) -> Result<VmRow, ApiError> {
    let client = app.store.client().await?;
    let row = vm_find(&client, &app.lab.domain, name_or_id).await?;
    row.ok_or_else(|| {
        let shown: String = name_or_id.chars().take(80).collect();
        ApiError::not_found(format!("there is no VM {shown:?}")).hint("`warren vm ls` lists the VMs")
    })
}

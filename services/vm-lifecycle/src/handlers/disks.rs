//! `warren.vm.disk_list` and `warren.vm.disk_delete`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    agent::{DiskCommand, DiskRemove},
    host::Empty,
    vm::{DiskRef, KeptDisks},
};
use store::StoreError;

use super::App;
use crate::db::disk::{disk_delete, disk_hold, disk_list};

/// Lists kept disks.
pub async fn list(app: Arc<App>, _: RequestContext, _: Empty) -> Result<KeptDisks, ApiError> {
    let client = app.store.client().await?;
    Ok(KeptDisks { disks: disk_list(&client).await? })
}

/// Deletes a kept disk: its row is held across the removal of its file, so that no VM takes it meanwhile. A crash in between
/// leaves the row, and a repeat finds no file, which is fine.
pub async fn delete(app: Arc<App>, _: RequestContext, request: DiskRef) -> Result<Empty, ApiError> {
    let mut client = app.store.client().await?;
    let txn = client.transaction().await.map_err(StoreError::from)?;
    let missing =
        || ApiError::not_found(format!("there is no kept disk {}", request.disk)).hint("`warren disk ls` lists them");
    let held = disk_hold(&txn, &request.disk).await?.ok_or_else(missing)?;
    if let Some(vm) = held.vm {
        let message = format!("the disk {} is in use by VM {vm}", request.disk);
        return Err(ApiError::failed_precondition(message).hint(format!("`warren vm rm {vm}` sets it free")));
    }
    app.bus.command::<DiskRemove>(&held.host, &DiskCommand { disk: request.disk.clone() }).await?;
    disk_delete(&txn, &request.disk).await?;
    txn.commit().await.map_err(StoreError::committing)?;
    Ok(Empty {})
}

//! `warren.kernel.get`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    kernel::{Kernel, KernelRef},
};

use super::not_found;
use crate::{db::kernel::lookup::kernel_find, handlers::App};

/// Shows one kernel.
pub async fn handle(app: Arc<App>, _: RequestContext, request: KernelRef) -> Result<Kernel, ApiError> {
    let client = app.store.client().await?;
    let found = kernel_find(&client, &request.kernel).await?;
    found.map(|found| found.kernel).ok_or_else(|| not_found(&request.kernel))
}

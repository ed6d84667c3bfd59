//! `warren.kernel.list`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    kernel::{KernelList, ListRequest},
};

use crate::{db::kernel::lookup::kernel_list, handlers::App};

/// Lists all kernels by name: a lab has tens of them.
pub async fn handle(app: Arc<App>, _: RequestContext, _: ListRequest) -> Result<KernelList, ApiError> {
    let client = app.store.client().await?;
    Ok(KernelList { kernels: kernel_list(&client).await? })
}

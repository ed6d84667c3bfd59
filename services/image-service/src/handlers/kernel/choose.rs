//! `warren.kernel.choose`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    kernel::{Choice, ChooseRequest},
};

use crate::{
    db::kernel::{choice::kernel_chosen, lookup::kernel_find},
    handlers::App,
};

/// Tells which kernel a VM boots: the one it asks for, else its image's, else the lab's default.
pub async fn handle(app: Arc<App>, _: RequestContext, request: ChooseRequest) -> Result<Choice, ApiError> {
    let client = app.store.client().await?;
    let kernel = match &request.kernel {
        Some(name) => kernel_find(&client, name.as_str()).await?.map(|found| found.kernel),
        None => kernel_chosen(&client, request.image).await?,
    };
    Ok(Choice { kernel })
}

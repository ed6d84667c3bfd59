//! `warren.kernel.set_default`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    kernel::{Choice, SetDefaultRequest},
};
use store::StoreError;

use super::not_found;
use crate::{
    db::kernel::{
        choice::{KERNEL_DEFAULT, kernel_set_default},
        lookup::{kernel_find, kernel_get},
    },
    handlers::App,
};

/// Sets the kernel of VMs that name none and whose image names none. One statement: a repeat sets it again.
pub async fn handle(app: Arc<App>, _: RequestContext, request: SetDefaultRequest) -> Result<Choice, ApiError> {
    let client = app.store.client().await?;
    let kernel = match &request.kernel {
        None => None,
        Some(reference) => {
            let found = kernel_find(&client, reference).await?;
            Some(found.ok_or_else(|| not_found(reference))?.kernel.id)
        }
    };
    match (kernel_set_default(&client, kernel).await, &request.kernel) {
        // Deleted between the two statements.
        (Err(StoreError::Constraint { name, .. }), Some(reference)) if name == KERNEL_DEFAULT => {
            return Err(not_found(reference));
        }
        (outcome, _) => outcome?,
    }
    let kernel = match kernel {
        None => None,
        Some(id) => kernel_get(&client, id).await?,
    };
    tracing::info!(kernel.id = ?kernel.as_ref().map(|kernel| kernel.id), "the lab's default kernel is set");
    Ok(Choice { kernel })
}

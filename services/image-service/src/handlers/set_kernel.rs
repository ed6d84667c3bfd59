//! `warren.image.set_kernel`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    image::{Image, SetKernelRequest},
};
use store::StoreError;

use super::{App, get::not_found, kernel};
use crate::db::{
    image::{IMAGE_KERNEL, image_set_kernel},
    kernel::lookup::kernel_find,
    lookup::image_find,
};

/// Lets an image name another kernel, or none. One statement: a repeat sets it again.
pub async fn handle(app: Arc<App>, _: RequestContext, request: SetKernelRequest) -> Result<Image, ApiError> {
    let client = app.store.client().await?;
    let image = image_find(&client, &request.image).await?.ok_or_else(|| not_found(&request.image))?.image;
    let kernel = match &request.kernel {
        None => None,
        Some(reference) => {
            let found = kernel_find(&client, reference).await?;
            Some(found.ok_or_else(|| kernel::not_found(reference))?.kernel.id)
        }
    };
    match (image_set_kernel(&client, image.id, kernel).await, &request.kernel) {
        // Deleted between the two statements.
        (Err(StoreError::Constraint { name, .. }), Some(reference)) if name == IMAGE_KERNEL => {
            return Err(kernel::not_found(reference));
        }
        (outcome, _) => outcome?,
    }
    let found = image_find(&client, &request.image).await?;
    found.map(|found| found.image).ok_or_else(|| not_found(&request.image))
}

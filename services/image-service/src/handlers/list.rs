//! `warren.image.list`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    image::{Image, ImageList, ListRequest},
};

use super::App;
use crate::db::image::image_list;

/// The most images of one page: about half of what a NATS message holds.
const PAGE_MAX: u32 = 500;

/// The most bytes of a page, as JSON: half of what a NATS server takes when nobody told it otherwise. One image has fewer
/// ([`contract::image::CONFIG_MAX`]).
const BYTES_MAX: usize = 512 * 1024;

/// Lists a page of images by name.
pub async fn handle(app: Arc<App>, _: RequestContext, request: ListRequest) -> Result<ImageList, ApiError> {
    if !(1..=PAGE_MAX).contains(&request.limit) {
        return Err(ApiError::invalid_argument(format!("`limit` cannot be {}", request.limit))
            .hint(format!("it is 1 to {PAGE_MAX}")));
    }
    let client = app.store.client().await?;
    let mut images = image_list(&client, &request).await?;
    let page = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let fitting = fitting(&images)?.min(page);
    let more = images.len() > fitting;
    images.truncate(fitting);
    Ok(ImageList { images, more })
}

/// How many of the images a page can hold; one at the least.
fn fitting(images: &[Image]) -> Result<usize, ApiError> {
    let mut bytes = 0;
    for (n, image) in images.iter().enumerate() {
        bytes += serde_json::to_vec(image).map_err(|error| ApiError::internal(error.to_string()))?.len();
        if n > 0 && bytes > BYTES_MAX {
            return Ok(n);
        }
    }
    Ok(images.len())
}

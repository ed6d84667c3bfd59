//! `warren.image.list`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    image::{ImageList, ListRequest},
};

use super::App;
use crate::db::image::image_list;

/// The most images of one page: about half of what a NATS message holds.
const PAGE_MAX: u32 = 500;

/// Lists a page of images by name.
pub async fn handle(app: Arc<App>, _: RequestContext, request: ListRequest) -> Result<ImageList, ApiError> {
    if !(1..=PAGE_MAX).contains(&request.limit) {
        return Err(ApiError::invalid_argument(format!("`limit` cannot be {}", request.limit))
            .hint(format!("it is 1 to {PAGE_MAX}")));
    }
    let client = app.store.client().await?;
    let mut images = image_list(&client, &request).await?;
    let page = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let more = images.len() > page;
    images.truncate(page);
    Ok(ImageList { images, more })
}

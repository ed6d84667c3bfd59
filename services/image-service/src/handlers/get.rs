//! `warren.image.get`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    image::{Image, ImageRef},
};

use super::App;
use crate::db::lookup::image_find;

/// Shows one image.
pub async fn handle(app: Arc<App>, _: RequestContext, request: ImageRef) -> Result<Image, ApiError> {
    let client = app.store.client().await?;
    let found = image_find(&client, &request.image).await?;
    found.map(|found| found.image).ok_or_else(|| not_found(&request.image))
}

/// What a caller is told who names an image the lab does not hold.
pub fn not_found(name_or_id: &str) -> ApiError {
    let shown: String = name_or_id.chars().take(80).collect();
    ApiError::not_found(format!("there is no image {shown:?}")).hint("`warren image ls` lists the images")
}

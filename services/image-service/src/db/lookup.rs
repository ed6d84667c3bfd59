//! A **lookup**: the image a request means.

use contract::{ApiError, image::Image};
use serde_json::json;
use store::GenericClient;

use super::image::{image_begins, image_named};
use crate::domain::reference;

/// An image, and how it was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The image.
    pub image: Image,
    /// Whether it was called by its name.
    pub by_name: bool,
}

/// The image a reference means; a name comes before what begins an id or a digest.
///
/// # Errors
/// `invalid_argument` when several begin like that, or the database could not.
pub async fn image_find(client: &impl GenericClient, reference: &str) -> Result<Option<Found>, ApiError> {
    if let Some(name) = reference::name(reference)
        && let Some(image) = image_named(client, &name).await?
    {
        return Ok(Some(Found { image, by_name: true }));
    }
    let Some(prefix) = reference::prefix(reference) else { return Ok(None) };
    let mut images = image_begins(client, &prefix).await?;
    // Those of one digest are the same image, but for ids and what is left of older days.
    images.dedup_by(|next, first| next.digest == first.digest && !next.id.to_string().starts_with(reference));
    match images.len() {
        0 => Ok(None),
        1 => Ok(images.pop().map(|image| Found { image, by_name: false })),
        _ => {
            let all: Vec<_> = images.iter().map(|image| format!("{} ({})", image.digest, image.id)).collect();
            Err(ApiError::invalid_argument(format!("several images begin with {reference}: {}", all.join(", ")))
                .hint("give more digits")
                .details(json!({ "images": images.iter().map(|image| image.id).collect::<Vec<_>>() })))
        }
    }
}

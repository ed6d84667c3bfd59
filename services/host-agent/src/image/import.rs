//! An image made of an **archive**: a tar archive of an OCI layout, as `image export`, `skopeo` and `docker save` write it. It is taken like a
//! file that is registered, and believed as little as a pull is.

use contract::{
    ApiError,
    agent::StagedImage,
    image::{FileSource, ImageSource},
};

use super::{pull, register, stage::Staging, storage_error};
use crate::upload::{self, GIVEN};

/// Makes the image in the staging's directory.
///
/// # Errors
/// The archive is not there, breaks off, is no layout or a damaged one, is over a limit, or the disk is full.
pub(super) async fn make(staging: &Staging, from: &FileSource) -> Result<StagedImage, ApiError> {
    register::take(staging, from).await?;
    runtime::fault::point("agent/image.import/taken");
    let given = staging.dir.join(GIVEN);
    let path = given.to_str().ok_or_else(|| ApiError::internal("the state directory's path is not UTF-8"))?.to_owned();
    // What the errors say is about the archive, not about where it was put.
    let told = |error: ApiError| ApiError { message: error.message.replace(&path, "the archive"), ..error };
    let layout = ImageSource::Layout { path: path.clone(), reference: None };
    let image = pull::make(staging, &layout).await.map_err(told)?;
    staging
        .blocking(move |dir, _, _| {
            upload::forget(dir).map_err(|error| storage_error(dir, &error))?;
            Ok(image)
        })
        .await
}

//! **Images**: requests to `image-service` and what it says of them. One module a noun.

mod config;
mod delete;
mod listing;
mod pull;
mod push;
mod record;
mod source;

pub use config::ImageConfig;
pub use delete::DeleteRequest;
pub use listing::{ImageList, ListRequest};
pub use pull::PullRequest;
pub use push::PushRequest;
pub use record::{Image, ImageRef};
pub use source::ImageSource;

use crate::{deadline, operation::Operation, verb::verbs};

verbs! {
    /// Pulls an image from a registry or an OCI layout. Operation `image.pull`; its result is the image.
    Pull = "warren.image.pull", true, deadline::WAITING, PullRequest => Operation;
    /// Pushes an image to a registry as a bundle. Operation `image.push`; its result has the digests of the bundle and of the image.
    Push = "warren.image.push", true, deadline::WAITING, PushRequest => Operation;
    /// Lists images.
    List = "warren.image.list", false, deadline::QUICK, ListRequest => ImageList;
    /// Shows one image.
    Get = "warren.image.get", false, deadline::QUICK, ImageRef => Image;
    /// Deletes an image no VM uses. Operation `image.delete`.
    Delete = "warren.image.delete", true, deadline::WAITING, DeleteRequest => Operation;
}

//! **Listings**: images by name, a page at a time.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Image;
use crate::{name::ImageName, operation::default_limit};

/// Lists images by name.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// How many at the most (1 to 500; 100 when left out).
    #[serde(default = "default_limit")]
    pub limit: u32,
    /// Only names after this one: the last name of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<ImageName>,
    /// Also images without a name: VMs use them still, or they are about to be removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// A page of images.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ImageList {
    /// The page.
    pub images: Vec<Image>,
    /// Whether there is more: ask again with `after` set to the last name here.
    pub more: bool,
}

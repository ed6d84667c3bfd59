//! Images: requests to `image-service` and what it says of them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    deadline,
    id::{HostId, ImageId},
    name::ImageName,
    operation::{Operation, default_limit, default_wait_ms},
    verb::verbs,
};

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ImageSource {
    /// A registry reference, e.g. `127.0.0.1:5000/debian:12` or `…@sha256:…`. Loopback registries are
    /// spoken to over http, others over https unless the host-agent's configuration says otherwise.
    Registry(String),
    /// An OCI image layout directory on the host that stages it (an absolute path), with the name of the
    /// manifest (`org.opencontainers.image.ref.name`) where it holds several.
    Layout {
        /// Absolute path of the layout directory.
        path: String,
        /// Which manifest, where there are several.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
    },
}

impl std::fmt::Display for ImageSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Registry(reference) => f.write_str(reference),
            Self::Layout { path, reference: None } => write!(f, "oci:{path}"),
            Self::Layout { path, reference: Some(reference) } => write!(f, "oci:{path}:{reference}"),
        }
    }
}

/// What an image's author asked to be run (OCI image-spec `config`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageConfig {
    /// `Entrypoint`.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// `Env`, each `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// `WorkingDir`; empty means `/`.
    #[serde(default)]
    pub working_dir: String,
    /// `User`; empty means root.
    #[serde(default)]
    pub user: String,
}

/// Pulls an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// Where from.
    pub source: ImageSource,
    /// The name it gets here.
    pub name: ImageName,
    /// The host that holds it; left out, the live host with most free disk space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// Hold the reply until the pull has ended.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// Names one image, by name or id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageRef {
    /// Its name or id.
    pub image: String,
}

/// Deletes an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteRequest {
    /// Its name or id.
    pub image: String,
    /// Hold the reply until its files are gone too.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

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
}

/// An image as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// Its name.
    pub name: ImageName,
    /// The digest of its manifest for this architecture: `sha256:…`.
    pub digest: String,
    /// Where it came from.
    pub source: String,
    /// OCI architecture, e.g. `amd64`.
    pub architecture: String,
    /// Size of its root filesystem, in bytes.
    pub rootfs_bytes: u64,
    /// What its author asked to be run.
    pub config: ImageConfig,
    /// The hosts that hold it.
    pub hosts: Vec<HostId>,
    /// When it was published.
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String")]
    pub created_at: OffsetDateTime,
}

/// A page of images.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ImageList {
    /// The page.
    pub images: Vec<Image>,
    /// Whether there is more: ask again with `after` set to the last name here.
    pub more: bool,
}

verbs! {
    /// Pulls an image from a registry or an OCI layout. Operation `image.pull`; its result is the image.
    Pull = "warren.image.pull", true, deadline::WAITING, PullRequest => Operation;
    /// Lists images.
    List = "warren.image.list", false, deadline::QUICK, ListRequest => ImageList;
    /// Shows one image.
    Get = "warren.image.get", false, deadline::QUICK, ImageRef => Image;
    /// Deletes an image no VM uses. Operation `image.delete`.
    Delete = "warren.image.delete", true, deadline::WAITING, DeleteRequest => Operation;
}

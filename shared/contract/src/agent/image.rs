//! **Images** on a host: staged, published, removed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fence, StagedKernel};
use crate::{
    error::ApiError,
    id::{ImageId, VmId},
    image::{FileSource, ImageConfig, ImageSource},
    operation::Progress,
};

/// Starts staging an image, or asks how it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageRequest {
    /// The pull; its operation id names the staging directory.
    pub fence: Fence,
    /// What it is made of.
    pub source: StageSource,
    /// How long to hold the reply while nothing ends, in milliseconds.
    pub wait_ms: u64,
}

/// What a host makes an image of. Where that is pulled, it is written as [`ImageSource`] is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StageSource {
    /// A registry reference: [`ImageSource::Registry`].
    Registry(String),
    /// An OCI image layout directory on the host: [`ImageSource::Layout`].
    Layout {
        /// Absolute path of the layout directory.
        path: String,
        /// Which manifest, where there are several.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
    },
    /// The root disk of a VM on the host.
    Vm {
        /// The VM.
        vm: VmId,
        /// OpenSSH public keys that may log in as root of every VM of the image, beside those that may already.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ssh_keys: Vec<String>,
        /// Leave in it what makes one machine of it: its machine id, ssh host keys, random seed and leases.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        keep_identity: bool,
    },
    /// A root filesystem in a file or a directory.
    File {
        /// Where it is.
        from: FileSource,
        /// What is run in VMs made from it.
        #[serde(default)]
        config: ImageConfig,
    },
    /// An archive: a tar archive of an OCI layout.
    Archive {
        /// Where it is.
        from: FileSource,
    },
}

impl From<ImageSource> for StageSource {
    fn from(source: ImageSource) -> Self {
        match source {
            ImageSource::Registry(reference) => Self::Registry(reference),
            ImageSource::Layout { path, reference } => Self::Layout { path, reference },
        }
    }
}

impl std::fmt::Display for StageSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Registry(reference) => f.write_str(reference),
            Self::Vm { vm, .. } => write!(f, "vm {vm}"),
            Self::Layout { path, reference: None } => write!(f, "oci:{path}"),
            Self::Layout { path, reference: Some(reference) } => write!(f, "oci:{path}:{reference}"),
            Self::File { from, .. } | Self::Archive { from } => from.fmt(f),
        }
    }
}

/// Asks what a source stands for now; nothing is downloaded but its manifests and configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveRequest {
    /// Where from.
    pub source: ImageSource,
}

/// What a source stands for on this host's architecture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResolvedImage {
    /// Digest of the manifest for this architecture: what [`StagedImage::digest`] would be.
    pub digest: String,
    /// OCI architecture.
    pub architecture: String,
    /// Bytes of each layer as it is downloaded, lowest first.
    pub layers: Vec<u64>,
    /// Digest of the kernel that comes along, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
}

/// How a staging goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum StageStatus {
    /// Still at it.
    Running {
        /// `resolving`, `downloading`, `writing`.
        phase: String,
        /// Bytes.
        progress: Progress,
    },
    /// Whole and synced in the staging directory.
    Done {
        /// What it is.
        image: StagedImage,
    },
    /// Failed; the staging directory is gone.
    Failed {
        /// Why.
        error: ApiError,
    },
}

/// A staged image; stands in `manifest.json` beside the root filesystem too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StagedImage {
    /// Digest of the manifest for this architecture.
    pub digest: String,
    /// OCI architecture.
    pub architecture: String,
    /// Size of the root filesystem, in bytes.
    pub rootfs_bytes: u64,
    /// What its author asked to be run.
    pub config: ImageConfig,
    /// A kernel that came along, staged under the same operation; `kernel.publish` makes it visible, `image.discard` removes it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<StagedKernel>,
}

/// Makes a staged image visible under its id: one rename, synced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishRequest {
    /// The pull.
    pub fence: Fence,
    /// The directory's final name.
    pub image: ImageId,
}

/// Ends a staging and removes its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiscardRequest {
    /// The pull.
    pub fence: Fence,
}

/// Removes a published image's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveImageRequest {
    /// The operation.
    pub fence: Fence,
    /// The image.
    pub image: ImageId,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pulled_is_written_as_its_source_is() {
        let sources = [
            ImageSource::Registry("127.0.0.1:5000/debian:12".into()),
            ImageSource::Layout { path: "/srv/debian".into(), reference: None },
            ImageSource::Layout { path: "/srv/debian".into(), reference: Some("12".into()) },
        ];
        for source in sources {
            let text = serde_json::to_string(&source).unwrap();
            assert_eq!(serde_json::to_string(&StageSource::from(source.clone())).unwrap(), text);
            assert_eq!(StageSource::from(source.clone()).to_string(), source.to_string());
            assert_eq!(serde_json::from_str::<StageSource>(&text).unwrap(), StageSource::from(source));
        }
    }
}

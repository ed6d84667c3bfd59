//! What stories of downloads have in common: an image whose layers cannot be packed, and pulls of it.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{path::Path, sync::Arc, time::Duration};

use contract::{
    ApiError, OperationId,
    agent::{DiscardRequest, Fence, StageRequest, StageStatus, StagedImage},
    image::ImageSource,
};
use host_agent::image::{ImageOptions, ImageStore, Limits};
use tempfile::TempDir;
use testkit::{
    image::{Layer, Layout, Packing},
    scripted::Scripted,
};

/// Short enough to wait for, long enough for a loaded machine to be honest.
pub const STALL: Duration = Duration::from_secs(2);

/// Of a host whose disk may be as full as the machine's is.
pub fn options() -> ImageOptions {
    ImageOptions { limits: Limits { stall: STALL, ..Limits::default() }, high_water: 100, ..ImageOptions::default() }
}

/// An image in a scripted registry.
pub struct Image {
    pub layout: TempDir,
    pub reference: String,
    pub digest: String,
    pub layers: Vec<(String, u64)>,
    sizes: Vec<usize>,
}

/// Bytes that do not become fewer, and differ by their number.
fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).take(size.div_ceil(8)).flatten().take(size).collect()
}

impl Image {
    /// An image with layers of about these sizes, as `story/image:1`.
    pub fn new(registry: &Scripted, sizes: &[usize]) -> Self {
        Self::named(registry, "image", sizes.to_vec())
    }

    /// Another image on top of this one's layers.
    pub fn with(&self, registry: &Scripted, name: &str, more: &[usize]) -> Self {
        Self::named(registry, name, [&self.sizes[..], more].concat())
    }

    fn named(registry: &Scripted, name: &str, sizes: Vec<usize>) -> Self {
        let layout = tempfile::tempdir().unwrap();
        let layers = sizes.iter().enumerate().map(|(n, size)| {
            let packing = [Packing::Gzip, Packing::Zstd, Packing::Plain][n % 3];
            Layer::new(packing).dir("data", 0o755).file(&format!("data/{n}"), 0o644, &noise(*size, n as u64 + 1))
        });
        Layout::new(layers.collect()).write(layout.path()).unwrap();
        let reference = registry.add(layout.path(), &format!("story/{name}"), "1");
        let layers = registry.layers(&format!("story/{name}"), "1");
        let digest = registry.digest(&format!("story/{name}"), "1");
        Self { layout, reference, digest, layers, sizes }
    }

    /// Puts it into another registry too, under the same name.
    pub fn add_to(&self, registry: &Scripted) {
        registry.add(self.layout.path(), "story/image", "1");
    }

    /// The bytes of blobs a pull needs.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.1).sum::<u64>() + self.config_bytes()
    }

    /// Its configuration's.
    pub fn config_bytes(&self) -> u64 {
        let path = self.layout.path().join("blobs/sha256").join(self.digest.trim_start_matches("sha256:"));
        let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        manifest["config"]["size"].as_u64().unwrap()
    }

    /// The names of its layers in a cache that has them whole, sorted.
    pub fn whole(&self) -> Vec<String> {
        let names = self.layers.iter().map(|layer| layer.0.trim_start_matches("sha256:").to_owned());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}

/// What a cache holds, sorted.
pub fn blobs(state: &Path) -> Vec<String> {
    let mut names = testkit::lab::entries(&state.join("blobs/sha256"));
    names.sort();
    names
}

pub fn store(state: &Path, options: ImageOptions) -> Arc<ImageStore> {
    ImageStore::open(state, options).unwrap()
}

pub fn fence() -> Fence {
    Fence { operation: OperationId::new(), epoch: 1 }
}

pub fn request(fence: Fence, reference: &str, wait_ms: u64) -> StageRequest {
    StageRequest { fence, source: ImageSource::Registry(reference.to_owned()).into(), wait_ms }
}

/// Stages an image and discards it: only what it leaves in the cache stays.
pub async fn pull_by(images: &Arc<ImageStore>, reference: &str) -> Result<StagedImage, ApiError> {
    staged(images, ImageSource::Registry(reference.to_owned())).await
}

pub async fn pull_layout(images: &Arc<ImageStore>, path: &Path) -> Result<StagedImage, ApiError> {
    staged(images, ImageSource::Layout { path: path.display().to_string(), reference: None }).await
}

async fn staged(images: &Arc<ImageStore>, source: ImageSource) -> Result<StagedImage, ApiError> {
    let fence = fence();
    let status = images.stage(&StageRequest { fence, source: source.into(), wait_ms: 120_000 }).await.unwrap();
    let outcome = match status {
        StageStatus::Done { image } => Ok(image),
        StageStatus::Failed { error } => Err(error),
        running => panic!("{running:?}"),
    };
    images.discard(&DiscardRequest { fence }).await.unwrap();
    outcome
}

/// The same by a host-agent that has just started.
pub async fn pull(state: &Path, options: ImageOptions, reference: &str) -> Result<StagedImage, ApiError> {
    pull_by(&store(state, options), reference).await
}

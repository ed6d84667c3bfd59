//! How images are staged on this host: what its operator decides.

use std::path::PathBuf;

use super::{HIGH_WATER, Limits, Mirror};

/// How many bytes of blobs stay in the cache when nothing else is said: some dozens of base images.
pub const CACHE_MAX: u64 = 8 << 30;

/// How images are staged.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// Registries (`host:port`) spoken to over http.
    pub insecure_registries: Vec<String>,
    /// A directory with a docker `config.json` that holds credentials; the user's own when left out.
    pub docker_config: Option<PathBuf>,
    /// Who is asked for a registry's images before it, in order.
    pub mirrors: Vec<Mirror>,
    /// How many bytes of blobs stay in the cache; [`CACHE_MAX`] or a tenth of the disk, whichever is less, when left out.
    pub cache_bytes: Option<u64>,
    /// How full images may make the disk, in percent; 100: no mark.
    pub high_water: u8,
    /// What an image may ask of this host.
    pub limits: Limits,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            insecure_registries: Vec::new(),
            docker_config: None,
            mirrors: Vec::new(),
            cache_bytes: None,
            high_water: HIGH_WATER,
            limits: Limits::default(),
        }
    }
}

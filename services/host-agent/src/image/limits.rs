//! Limits on what an image may ask of a host: everything that comes from a registry may be a lie.

use std::time::Duration;

/// The most entries a host can be told to take: what numbers the names of one image, but for those that one last entry may make of its own.
pub const ENTRIES_MAX: u64 = (1 << 24) - 3 - ENTRIES_SPARE;
/// The most directories that one entry's path leads to the making of, with room to spare.
pub(super) const ENTRIES_SPARE: u64 = 10_000;

/// The limits of one staging.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Layers of one image.
    pub layers: usize,
    /// Bytes of a manifest, index or configuration.
    pub document: u64,
    /// Bytes of all layers as they are downloaded.
    pub packed: u64,
    /// Bytes of all layers unpacked, and of all files with their holes.
    pub unpacked: u64,
    /// How many times larger than its download a layer may become, once it is over [`Limits::ratio_from`].
    pub ratio: u64,
    /// From how many unpacked bytes on the ratio counts: small files of zeros are honest.
    pub ratio_from: u64,
    /// Entries of all layers.
    pub entries: u64,
    /// Whether device nodes are taken.
    pub devices: bool,
    /// Bytes that stay free on the host's disk.
    pub reserve: u64,
    /// How long a registry may say nothing.
    pub stall: Duration,
    /// How long the sender of an upload that broke off is waited for.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            layers: 128,
            document: 4 << 20,
            packed: 32 << 30,
            unpacked: 64 << 30,
            ratio: 200,
            ratio_from: 64 << 20,
            entries: 2_000_000,
            devices: true,
            reserve: 512 << 20,
            stall: Duration::from_secs(30),
            patience: crate::upload::PATIENCE,
        }
    }
}

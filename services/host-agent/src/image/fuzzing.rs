//! What fuzz targets run (`fuzz/`), and a test over their corpus: bytes that may be anything must end in an error or an
//! image, and never in a panic or outside of the directory they are given.

use std::path::Path;

use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    layer::{Applier, Packed},
    limits::Limits,
    manifest::{self, Descriptor},
    progress::Reporter,
};

/// Small enough that no input takes long.
const LIMITS: Limits = Limits {
    layers: 4,
    document: 1 << 16,
    packed: 1 << 20,
    unpacked: 8 << 20,
    ratio: 200,
    ratio_from: 1 << 20,
    entries: 2000,
    devices: true,
    reserve: 0,
    stall: std::time::Duration::from_secs(1),
    patience: std::time::Duration::from_secs(1),
};
/// What divides two layers in one input.
const BETWEEN: &[u8] = b"\n--- layer ---\n";

/// Applies bytes as an image's layers, to a file in a directory; tells whether that made an image.
pub fn layers(dir: &Path, bytes: &[u8]) -> bool {
    let rootfs = dir.join("rootfs.ext4");
    let cancel = CancellationToken::new();
    let Ok(mut applier) = Applier::new(&rootfs, uuid::Uuid::nil(), &LIMITS, &cancel) else { return false };
    let mut rest = bytes;
    loop {
        let end = rest.windows(BETWEEN.len()).position(|window| window == BETWEEN);
        let layer = &rest[..end.unwrap_or(rest.len())];
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(layer)));
        let descriptor = Descriptor::new(&digest, layer.len() as u64);
        let reader = Box::new(std::io::Cursor::new(layer.to_vec()));
        if applier.layer(Packed { descriptor, diff_id: Some(digest), reader }, &Reporter::default()).is_err() {
            return false;
        }
        match end {
            Some(end) => rest = &rest[end + BETWEEN.len()..],
            None => return applier.finish().is_ok(),
        }
    }
}

/// Reads bytes as a manifest, an index and a configuration; tells whether they are one of them.
pub fn manifest(bytes: &[u8]) -> bool {
    manifest::examine(bytes)
}

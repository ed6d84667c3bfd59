//! The **kernel** in a bundle: a layer beside the root filesystem, the archive in which kernels are carried from host to host. Its descriptor
//! says by an annotation which kernel it is. It is not in the image's identity, as which kernel an image names is the lab's affair; whoever
//! knows no such layer reads over it.

use std::{io, path::Path, sync::Arc};

use contract::{ApiError, agent::VmKernel};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    image::{identity::digest_of_file, progress::Reporter, storage_error},
    kernel::KernelObjects,
};

/// The kernel's files.
pub(in crate::image) const KERNEL_TYPE: &str = "application/vnd.warren.kernel.v1.tar+zstd";
/// The annotation that says which kernel they are.
pub(in crate::image) const KERNEL_DIGEST: &str = "warren.kernel.digest";
/// Its name in the directory it is packed in.
pub(super) const PACKED: &str = "kernel.tar.zst";

/// A kernel that a bundle takes along.
#[derive(Clone)]
pub(in crate::image) struct Taken {
    pub objects: Arc<KernelObjects>,
    pub kernel: VmKernel,
}

/// A packed kernel.
pub(in crate::image) struct Packed {
    /// Of the layer.
    pub digest: String,
    /// Bytes of the layer.
    pub size: u64,
    /// The kernel's own.
    kernel: String,
}

impl Packed {
    pub(super) fn descriptor(&self) -> Value {
        json!({
            "mediaType": KERNEL_TYPE, "digest": self.digest, "size": self.size,
            "annotations": { KERNEL_DIGEST: self.kernel },
        })
    }
}

/// Packs a kernel in the directory of a push, if one goes along.
///
/// # Errors
/// It is not here, the disk is full, a file cannot be read or written, or it was called off.
pub(super) async fn packed(
    taken: Option<&Taken>,
    dir: &Path,
    progress: &Reporter,
    cancel: &CancellationToken,
) -> Result<Option<Packed>, ApiError> {
    let Some(Taken { objects, kernel }) = taken.cloned() else { return Ok(None) };
    let (path, cancel) = (dir.join(PACKED), cancel.clone());
    progress.phase("packing", 0);
    // Not abandoned on a cancel, which it looks out for itself: nothing may write there once this has ended.
    let packing = tokio::task::spawn_blocking(move || {
        objects.pack(&kernel, &path, &cancel)?;
        let hashed = digest_of_file(&path, |_| !cancel.is_cancelled());
        let (digest, size) = hashed.map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => ApiError::cancelled("the packing was called off"),
            _ => storage_error(&path, &error),
        })?;
        Ok(Some(Packed { digest, size, kernel: kernel.digest }))
    });
    packing.await.map_err(|error| ApiError::internal(format!("the packing failed: {error}")))?
}

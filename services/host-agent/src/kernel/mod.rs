//! The guests' kernel and initramfs, made once for each (kernel, modules, guest-agent) and kept; those that were not used for longest go.

mod bzimage;
mod carrying;
mod catalog;
mod check;
mod identity;
mod initramfs;
mod inventory;
mod making;
mod objects;
mod offer;
mod package;
mod packages;
mod packed;
#[cfg(test)]
mod samples;
mod staging;
#[cfg(test)]
mod stories;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use catalog::Kernels;
use making::Making;
pub use making::prune;
pub use objects::{KernelObjects, KernelOptions};
pub use offer::OfferError;
use sha2::{Digest, Sha256};

/// What a guest boots from.
#[derive(Clone, Debug)]
pub struct BootFiles {
    /// The kernel, an uncompressed ELF file.
    pub vmlinux: PathBuf,
    /// The initramfs, an uncompressed cpio archive.
    pub initramfs: PathBuf,
    /// The kernel's release, e.g. `6.1.0-44-cloud-amd64`.
    pub release: String,
}

/// Why a kernel cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file cannot be read or written.
    #[error("{path} cannot be used")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel is not in a format that is understood.
    #[error("{path} is no kernel that can be used: {why}")]
    Format {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A package holds no kernel that can be used.
    #[error("{path} holds no kernel that can be used")]
    Package {
        /// The package, or the directory of several.
        path: PathBuf,
        /// Why.
        source: OfferError,
    },
    /// A module guests need is not there.
    #[error("the kernel module {name} is neither below {dir} nor built in")]
    Module {
        /// Which module.
        name: &'static str,
        /// Where it was looked for.
        dir: PathBuf,
    },
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> KernelError {
    let path = path.to_owned();
    move |source| KernelError::File { path, source }
}

/// Makes the boot files, or finds those made earlier; a kernel without modules has its drivers built in. Several agents may
/// do so at once. Blocking.
///
/// # Errors
/// A file is missing or not what it should be, or the disk is full.
pub fn prepare(
    state_dir: &Path,
    kernel: &Path,
    modules: Option<&Path>,
    guest_agent: &Path,
) -> Result<BootFiles, KernelError> {
    let read = |path: &Path| fs::read(path).map_err(file_error(path));
    let (image, agent) = (read(kernel)?, read(guest_agent)?);
    let modules_found = modules.map(initramfs::modules).transpose()?.unwrap_or_default();
    let release = modules.unwrap_or(kernel).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut hasher = Sha256::new();
    for part in [&image[..], &agent, release.as_bytes(), &[FORMAT]] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    let making = Making::new(state_dir, &hex::encode(hasher.finalize())[..16])?;
    if making.made()?.is_some() {
        return Ok(making.files(release));
    }
    let vmlinux = bzimage::vmlinux(image).map_err(|why| KernelError::Format { path: kernel.to_owned(), why })?;
    let draft = making.draft()?;
    making.finish(&draft, &vmlinux, &initramfs::build(&agent, &modules_found)?, &release)?;
    making.publish(draft)?;
    Ok(making.files(release))
}

/// Changes when the initramfs is made in another way, so that old ones are not used.
const FORMAT: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_kernel_becomes_an_elf_file_and_an_initramfs() {
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let (Some(kernel), Some(modules), Some(agent)) =
            (path("WARREN_KERNEL"), path("WARREN_KERNEL_MODULES"), path("WARREN_GUEST_AGENT"))
        else {
            println!("skipped: WARREN_KERNEL, WARREN_KERNEL_MODULES and WARREN_GUEST_AGENT are not set");
            return;
        };
        let state = tempfile::tempdir().unwrap();
        let files = prepare(state.path(), &kernel, Some(&modules), &agent).unwrap();
        assert_eq!(fs::read(&files.vmlinux).unwrap()[..4], *b"\x7fELF");
        assert_eq!(fs::read(&files.initramfs).unwrap()[..6], *b"070701");
        let again = prepare(state.path(), &kernel, Some(&modules), &agent).unwrap();
        assert_eq!(again.vmlinux, files.vmlinux);
        assert_eq!(fs::read_dir(state.path().join("kernels")).unwrap().count(), 1, "nothing is left beside it");

        // The same comes out of the package the kernel is shipped in, found in the directory of kernels.
        let root = kernel.parent().and_then(Path::parent).unwrap();
        let mut archive = ::tar::Builder::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
        archive.append_path_with_name(&kernel, kernel.strip_prefix(root).unwrap()).unwrap();
        archive.append_dir_all(modules.strip_prefix(root).unwrap(), &modules).unwrap();
        let data = archive.into_inner().unwrap().finish().unwrap();
        let kernels = state.path().join("offered");
        fs::create_dir_all(kernels.join("packaged")).unwrap();
        let package = fs::File::create(kernels.join("packaged/linux-image.deb")).unwrap();
        let mut package = ar::Builder::new(package);
        package.append(&ar::Header::new(b"data.tar.zst".to_vec(), data.len() as u64), &data[..]).unwrap();
        drop(package);
        let objects = KernelObjects::open(state.path(), KernelOptions::default()).unwrap();
        let catalog = Kernels::new(files.clone(), state.path(), Some(&kernels), &agent, objects);
        let packaged = catalog.get(None, Some(&"packaged".parse().unwrap())).unwrap();
        assert_eq!(packaged.release, files.release);
        assert!(fs::read(&packaged.vmlinux).unwrap() == fs::read(&files.vmlinux).unwrap(), "another kernel");
        assert!(fs::read(&packaged.initramfs).unwrap() == fs::read(&files.initramfs).unwrap(), "another initramfs");
    }
}

//! The guests' kernel and initramfs, made once for each (kernel, modules, guest-agent) and kept.

mod bzimage;
mod catalog;
mod initramfs;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use catalog::Kernels;
use sha2::{Digest, Sha256};

use crate::files;

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
    let id = &hex::encode(hasher.finalize())[..16];
    let root = state_dir.join("kernels");
    let dir = root.join(id);
    let files = BootFiles { vmlinux: dir.join("vmlinux"), initramfs: dir.join("initramfs.cpio"), release };
    if dir.exists() {
        return Ok(files);
    }
    fs::create_dir_all(&root).map_err(file_error(&root))?;
    let draft = tempfile::Builder::new().prefix(".making-").tempdir_in(&root).map_err(file_error(&root))?;
    let vmlinux = bzimage::vmlinux(&image).map_err(|why| KernelError::Format { path: kernel.to_owned(), why })?;
    let write = |name: &str, bytes: &[u8]| {
        let path = draft.path().join(name);
        files::write_atomically(&path, bytes, 0o644).map_err(file_error(&path))
    };
    write("vmlinux", &vmlinux)?;
    write("initramfs.cpio", &initramfs::build(&agent, &modules_found)?)?;
    match fs::rename(draft.path(), &dir) {
        Ok(()) => files::sync_parent(&dir).map_err(file_error(&dir))?,
        // Another agent was faster and made the same.
        Err(_) if dir.exists() => {}
        Err(error) => return Err(file_error(&dir)(error)),
    }
    Ok(files)
}

/// Changes when the initramfs is made in another way, so that old ones are not used.
const FORMAT: u8 = 1;

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
    }
}

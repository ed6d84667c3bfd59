//! One **staging** of a kernel: what is handed in becomes a directory with the kernel's file, its unpacked modules and, written last, its
//! record. Blocking.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use contract::{ApiError, OperationId, agent::StagedKernel};
use nix::fcntl::OFlag;

use super::{
    KernelError, bzimage, identity,
    objects::{ARCHITECTURE, MANIFEST, Record},
    offer::{Limits, OfferError, Parts, failed},
    package,
};
use crate::{
    files::{self, chain},
    image::HighWater,
    tasks::Reins,
    upload::{self, GIVEN},
};

/// Free space that must be left on the disk, in bytes, beside what is unpacked.
pub(super) const RESERVE: u64 = 256 << 20;

/// What one staging needs.
pub(super) struct Staging {
    pub operation: OperationId,
    pub dir: PathBuf,
    /// What the digest has to be, where that is known.
    pub digest: Option<String>,
    /// Directories whose files may be imported.
    pub allowed: Vec<PathBuf>,
    /// How full the disk may become.
    pub high_water: HighWater,
    pub reins: Reins,
}

/// Counts what is read, and ends when the task is to end.
pub(super) struct Watched<'a, R> {
    pub from: R,
    pub reins: &'a Reins,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.reins.cancel.is_cancelled() {
            return Err(io::Error::other("told to end"));
        }
        let read = self.from.read(buffer)?;
        self.reins.add(read as u64);
        Ok(read)
    }
}

/// A directory that goes with it.
struct Unmade<'a>(&'a Path);

impl Drop for Unmade<'_> {
    fn drop(&mut self) {
        if let Err(error) = files::remove_dir(self.0) {
            tracing::warn!(dir = %self.0.display(), %error, "a kernel that was not made cannot be removed");
        }
    }
}

impl Staging {
    /// Does it all, from a file or a directory of this host.
    pub fn run_path(&self, path: &str) -> Result<StagedKernel, ApiError> {
        self.made(|parts| self.take_path(path, parts))
    }

    /// Does it all, from what was uploaded into the directory.
    pub fn run_upload(&self) -> Result<StagedKernel, ApiError> {
        let given = self.dir.join(GIVEN);
        let opened = || File::open(&given).map_err(|error| storage_error(&given, &error));
        let reins = Reins::of(self.reins.cancel.clone());
        self.made(|parts| {
            let watched = Watched { from: opened()?, reins: &reins };
            parts.file("the upload", watched).map_err(|error| self.refused(&error))
        })
    }

    /// Does it all, from one archive, which is read to its end.
    pub fn run_from(&self, mut archive: impl Read) -> Result<StagedKernel, ApiError> {
        self.made(|parts| {
            parts.file("the archive", &mut archive).map_err(|error| self.refused(&error))?;
            let rest = io::copy(&mut archive, &mut io::sink());
            rest.map(drop).map_err(failed("its archive cannot be read")).map_err(|error| self.refused(&error))
        })
    }

    fn made(&self, take: impl FnOnce(&mut Parts<'_>) -> Result<(), ApiError>) -> Result<StagedKernel, ApiError> {
        let storage = |error: io::Error| storage_error(&self.dir, &error);
        upload::fresh(&self.dir).map_err(storage)?;
        // A panic leaves no more than an error does.
        let unmade = Unmade(&self.dir);
        let outcome = self.taken(take);
        std::mem::forget(unmade);
        if outcome.is_err() {
            files::remove_dir(&self.dir).map_err(storage)?;
        }
        outcome
    }

    fn taken(&self, take: impl FnOnce(&mut Parts<'_>) -> Result<(), ApiError>) -> Result<StagedKernel, ApiError> {
        self.high_water.check()?;
        let free = files::free_bytes(&self.dir).map_err(|error| storage_error(&self.dir, &error))?;
        let kept = Limits::default().kept.min(free.saturating_sub(RESERVE));
        if kept < bzimage::KERNEL_MAX as u64 {
            return Err(ApiError::resource_exhausted(format!("the host's disk has only {} MiB free", free >> 20))
                .hint("remove images or kernels, or give the host more disk"));
        }
        let mut parts = Parts::new(&self.dir, Limits { kept, ..Limits::default() }, self.reins.cancel.clone());
        take(&mut parts)?;
        // What came may have been large, and more may have come beside it.
        self.high_water.check()?;
        runtime::fault::point("agent/kernel.stage/unpacked");
        self.finish(&parts)
    }

    fn take_path(&self, path: &str, parts: &mut Parts<'_>) -> Result<(), ApiError> {
        let opened = self.open_allowed(Path::new(path))?;
        let unusable = |error: io::Error| {
            ApiError::invalid_argument(format!("{path} cannot be read: {error}"))
                .hint("links are not followed; give a file, or a directory with the files of one kernel")
        };
        let kind = opened.metadata().map_err(unusable)?;
        if kind.is_file() {
            let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy().into_owned();
            return parts
                .file(&name, Watched { from: opened, reins: &self.reins })
                .map_err(|error| self.refused(&error));
        }
        if !kind.is_dir() {
            return Err(ApiError::invalid_argument(format!("{path} is neither a file nor a directory")));
        }
        // Looked at through the descriptor: the directory stays the one that was allowed.
        let root = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
        for name in identity::files_below(&root).map_err(unusable)? {
            let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
            let file = files::open_beneath(&root, &root.join(&name), flags).map_err(unusable)?;
            let mut file = Watched { from: file, reins: &self.reins };
            let taken = if name.contains('/') { parts.entry(&name, &mut file) } else { parts.file(&name, file) };
            taken.map_err(|error| self.refused(&error))?;
        }
        Ok(())
    }

    fn open_allowed(&self, wanted: &Path) -> Result<File, ApiError> {
        let root = self.allowed.iter().find(|root| wanted.starts_with(root)).ok_or_else(|| {
            let allowed: Vec<String> = self.allowed.iter().map(|dir| dir.display().to_string()).collect();
            let hint = match allowed.is_empty() {
                true => "its operator names one in WARREN_KERNELS".to_owned(),
                false => format!("it does from {}", allowed.join(", ")),
            };
            let path = wanted.display();
            ApiError::permission_denied(format!("{path} is not below a directory this host imports kernels from"))
                .hint(hint)
        })?;
        files::open_beneath(root, wanted, OFlag::O_RDONLY | OFlag::O_NONBLOCK).map_err(|error| {
            ApiError::invalid_argument(format!("{} cannot be opened: {error}", wanted.display()))
                .hint("it has to be there on the host that imports it, with no symbolic link in its path")
        })
    }

    /// What is wrong with an offer, or with this host's disk, or that it was told to end.
    fn refused(&self, error: &OfferError) -> ApiError {
        if self.reins.cancel.is_cancelled() {
            return ApiError::cancelled("the staging was discarded");
        }
        let full =
            |error: &io::Error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        match error {
            OfferError::Io { source, .. } if full(source) => storage_error(&self.dir, source),
            OfferError::Io { source, .. } if source.kind() == io::ErrorKind::ConnectionReset => {
                ApiError::unavailable(format!("the kernel's files did not come to their end: {source}"))
                    .hint("send them again")
            }
            error => unusable(&chain(error)),
        }
    }

    /// Looks at what was kept, finds out its digest, and writes the record that makes the directory whole.
    fn finish(&self, parts: &Parts<'_>) -> Result<StagedKernel, ApiError> {
        let storage = |error: io::Error| storage_error(&self.dir, &error);
        let looked_at = package::assemble(parts, Path::new("what was handed in"));
        let (_, _, release) = looked_at.map_err(|error| match &error {
            KernelError::File { source, .. } if source.kind() == io::ErrorKind::FileTooLarge => {
                unusable(&source.to_string())
            }
            KernelError::File { path, source } => storage_error(path, source),
            KernelError::Package { source, .. } => unusable(&chain(source)),
            KernelError::Module { name, .. } => unusable(&format!("it has modules, but not {name}, which guests need")),
            KernelError::Format { why, .. } => unusable(why),
        })?;
        let (image, modules_dir) = (parts.image_path(), parts.modules_dir());
        let modules = parts.modules.iter().map(String::as_str);
        let (digest, bytes) = identity::of(&release, ARCHITECTURE, &image, &modules_dir, modules).map_err(storage)?;
        if let Some(expected) = self.digest.as_ref().filter(|expected| **expected != digest) {
            return Err(ApiError::internal(format!("the kernel that came is {digest} and {expected} was asked for"))
                .hint("its files were changed on the host it came from: `warren doctor` there"));
        }
        let kernel = StagedKernel { digest, release, architecture: ARCHITECTURE.to_owned(), bytes };
        upload::forget(&self.dir).map_err(storage)?;
        // All files at once: one by one, thousands of modules would each wait for the disk.
        nix::unistd::syncfs(File::open(&self.dir).map_err(storage)?).map_err(|error| storage(error.into()))?;
        let record = Record { operation: self.operation, kernel: kernel.clone() };
        let record = serde_json::to_vec_pretty(&record).map_err(|error| ApiError::internal(error.to_string()))?;
        files::write_atomically(&self.dir.join(MANIFEST), &record, 0o644).map_err(storage)?;
        Ok(kernel)
    }
}

fn unusable(why: &str) -> ApiError {
    ApiError::invalid_argument(format!("no kernel can be imported from this: {why}")).hint(
        "give the .deb or .rpm packages of one kernel and its modules, or a vmlinux or bzImage with its drivers built in",
    )
}

/// The error of a file that cannot be written or read.
pub(super) fn storage_error(path: &Path, error: &io::Error) -> ApiError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ApiError::resource_exhausted(format!("the host's disk is full: {}", path.display()))
                .hint("remove images or kernels, or give the host more disk")
        }
        _ => ApiError::internal(format!("{} cannot be used: {error}", path.display())),
    }
}

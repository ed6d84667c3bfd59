//! What is **given** is brought into the staging's directory first, whole and without its holes: what is looked at later is what was taken,
//! whoever goes on writing to the original.

use std::{
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use archive::sparse;
use bus::Bus;
use contract::{ApiError, SessionId, image::FileSource};
use nix::fcntl::OFlag;
use tokio_util::sync::CancellationToken;

use super::{super::storage_error, Limits, Reporter, Staging, directory};
use crate::{
    files,
    upload::{Bounds, GIVEN, Incoming, Upload, UploadError},
};

/// How much is taken between two looks at the disk.
const LOOK: u64 = 32 << 20;
/// How much of an object is read at once.
const PIECE: usize = 256 << 10;

/// Brings what is given into the staging's directory.
///
/// # Errors
/// It is not there or may not be taken, changes meanwhile, is over a limit, breaks off, or the disk is full.
pub(in crate::image) async fn take(staging: &Staging, from: &FileSource) -> Result<(), ApiError> {
    staging.cache.high_water().check()?;
    staging.room(0)?;
    let limits = staging.options.limits;
    match from {
        FileSource::Path(path) => {
            staging.progress.phase("copying", 0);
            let (wanted, dirs) = (PathBuf::from(path), staging.images.sources().dirs);
            staging
                .blocking(move |dir, progress, cancel| {
                    let file = open_allowed(&wanted, &dirs)?;
                    let into = Into { dir, limits: &limits, progress, cancel };
                    into.copy(&wanted, &file)
                })
                .await
        }
        FileSource::Upload { session, .. } => receive(staging, bus_of(staging)?, *session).await,
        FileSource::Object(name) => object(staging, &bus_of(staging)?, name).await,
    }
}

fn bus_of(staging: &Staging) -> Result<Bus, ApiError> {
    staging.images.sources().bus.ok_or_else(|| ApiError::unavailable("the host does not take uploads yet"))
}

/// Opens what is below one of the directories allowed, without a link on the way, and without waiting for a fifo's other end.
fn open_allowed(wanted: &Path, dirs: &[PathBuf]) -> Result<File, ApiError> {
    let path = wanted.display();
    let root = dirs.iter().find(|root| wanted.starts_with(root)).ok_or_else(|| {
        ApiError::permission_denied(format!("{path} is not below a directory that this host makes images of"))
            .hint("its operator names them in WARREN_IMAGE_DIRS")
    })?;
    files::open_beneath(root, wanted, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).map_err(|error| {
        ApiError::invalid_argument(format!("{path} cannot be opened: {error}"))
            .hint("it has to be there on the host that makes the image, with no symbolic link in its path")
    })
}

/// Where it is brought, and within what.
pub(super) struct Into<'a> {
    pub(super) dir: &'a Path,
    pub(super) limits: &'a Limits,
    pub(super) progress: &'a Reporter,
    pub(super) cancel: &'a CancellationToken,
}

impl Into<'_> {
    fn create(&self) -> Result<File, ApiError> {
        let path = self.path();
        File::create(&path).map_err(|error| storage_error(&path, &error))
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(GIVEN)
    }

    pub(super) fn too_large(&self) -> ApiError {
        ApiError::invalid_argument(format!("it has more than the {} bytes this host takes", self.limits.unpacked))
    }

    /// Counts what was taken, and looks whether to go on: an error is `cancelled` or that the disk gets full.
    fn go_on<'a>(&'a self) -> impl FnMut(u64) -> io::Result<()> + 'a {
        let mut since = LOOK;
        move |bytes| {
            self.progress.add(bytes);
            since += bytes;
            if self.cancel.is_cancelled() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if since < LOOK {
                return Ok(());
            }
            since = 0;
            match files::free_bytes(self.dir)? < self.limits.reserve {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => Ok(()),
            }
        }
    }

    fn failed(&self, error: &io::Error, otherwise: impl FnOnce(&io::Error) -> ApiError) -> ApiError {
        match error.kind() {
            _ if self.cancel.is_cancelled() => ApiError::cancelled("the staging was discarded"),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => storage_error(&self.path(), error),
            _ => otherwise(error),
        }
    }

    fn copy(&self, wanted: &Path, file: &File) -> Result<(), ApiError> {
        let path = wanted.display();
        let unreadable = |error: &io::Error| ApiError::invalid_argument(format!("{path} cannot be read: {error}"));
        let before = file.metadata().map_err(|error| unreadable(&error))?;
        if before.is_dir() {
            return directory::pack(self, wanted, file);
        }
        if !before.is_file() {
            return Err(ApiError::invalid_argument(format!("{path} is neither a file nor a directory"))
                .hint("of a device, take what is on it into a file: `dd`"));
        }
        if before.len() > self.limits.unpacked {
            return Err(self.too_large());
        }
        self.progress.phase("copying", before.len());
        let (into, mut go_on, mut last) = (self.create()?, self.go_on(), 0);
        let copied = sparse::data(file, |at, bytes| {
            sparse::write_sparse(&into, at, bytes)?;
            let end = at + bytes.len() as u64;
            go_on(end - std::mem::replace(&mut last, end))
        });
        let changed = || {
            ApiError::aborted(format!("{path} changed while it was read"))
                .hint("something writes there, maybe a VM it is the disk of; register it when nothing does")
        };
        let length = copied.map_err(|error| {
            self.failed(&error, |error| match error.kind() {
                io::ErrorKind::UnexpectedEof => changed(),
                _ => unreadable(error),
            })
        })?;
        into.set_len(length).map_err(|error| storage_error(&self.path(), &error))?;
        let after = file.metadata().map_err(|error| unreadable(&error))?;
        if length != before.len() || stamp(&before) != stamp(&after) { Err(changed()) } else { Ok(()) }
    }
}

/// What changes when a file is written to.
fn stamp(file: &Metadata) -> (u64, i64, i64, i64, i64) {
    (file.len(), file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec())
}

/// Takes an upload to its end, over as many streams as that needs.
async fn receive(staging: &Staging, bus: Bus, session: SessionId) -> Result<(), ApiError> {
    staging.progress.phase("receiving", 0);
    let (limits, progress) = (staging.options.limits, staging.progress.clone());
    let bounds = Bounds { most: limits.unpacked, reserve: limits.reserve, patience: limits.patience, plain: false };
    let (dir, cancel) = (staging.dir.clone(), staging.cancel.clone());
    let count = Arc::new(move |bytes| progress.add(bytes));
    Upload { bus, session, dir, bounds, count, cancel }.take().await.map_err(|error| match &error {
        UploadError::Disk(disk) => storage_error(&staging.dir.join(GIVEN), disk),
        _ => error.into(),
    })
}

/// Takes an object of an object store (ADR-20), whose digest is checked at its end.
async fn object(staging: &Staging, bus: &Bus, name: &str) -> Result<(), ApiError> {
    staging.progress.phase("receiving", 0);
    let absent = |why: &dyn std::fmt::Display| {
        ApiError::not_found(format!("there is no object {name}: {why}"))
            .hint("`nats object put BUCKET FILE` puts one there, `nats object ls BUCKET` lists them")
    };
    let (bucket, key) = name.split_once('/').ok_or_else(|| absent(&"write bucket/name"))?;
    let found = async {
        let store = bus.jetstream().get_object_store(bucket).await.map_err(|error| absent(&error))?;
        store.get(key).await.map_err(|error| absent(&error))
    };
    let object = staging.unless_discarded(found).await?;
    let mut incoming = Incoming::new(object, staging.cancel.clone());
    let (limits, name) = (staging.options.limits, name.to_owned());
    staging
        .blocking(move |dir, progress, cancel| {
            let into = Into { dir, limits: &limits, progress, cancel };
            let (file, mut go_on, mut at, mut piece) = (into.create()?, into.go_on(), 0, vec![0; PIECE]);
            let failed = |error: io::Error| {
                into.failed(&error, |error| {
                    ApiError::unavailable(format!("the object {name} cannot be read to its end: {error}"))
                })
            };
            loop {
                let count = incoming.read(&mut piece).map_err(failed)?;
                if count == 0 {
                    return file.set_len(at).map_err(|error| storage_error(&into.path(), &error));
                }
                if at + count as u64 > limits.unpacked {
                    return Err(into.too_large());
                }
                sparse::write_sparse(&file, at, &piece[..count]).map_err(failed)?;
                at += count as u64;
                go_on(count as u64).map_err(failed)?;
            }
        })
        .await
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use contract::ErrorCode;

    use super::*;

    #[test]
    fn only_allowed_files_are_opened_and_no_link_leads_out_of_their_directory() {
        let dir = tempfile::tempdir().unwrap();
        let allowed = dir.path().join("allowed");
        fs::create_dir_all(allowed.join("deep")).unwrap();
        fs::write(allowed.join("deep/disk"), "x").unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        symlink("../secret", allowed.join("out")).unwrap();
        symlink("deep", allowed.join("link")).unwrap();
        nix::unistd::mkfifo(&allowed.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let open = |path: &str| open_allowed(&dir.path().join(path), std::slice::from_ref(&allowed));
        open("allowed/deep/disk").unwrap();
        open("allowed").unwrap();
        // What it is is looked at once it is open.
        open("allowed/fifo").unwrap();
        assert_eq!(open("secret").unwrap_err().code, ErrorCode::PermissionDenied);
        for path in ["allowed/out", "allowed/link/disk", "allowed/../secret", "allowed/none"] {
            assert_eq!(open(path).unwrap_err().code, ErrorCode::InvalidArgument, "{path}");
        }
        assert!(open_allowed(Path::new("/etc/passwd"), &[]).is_err());
    }
}

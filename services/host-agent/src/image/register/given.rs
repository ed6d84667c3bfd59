//! What is **given** is brought into the staging's directory first, whole and without its holes: what is looked at later is what was taken,
//! whoever goes on writing to the original.

use std::{
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use archive::sparse::{self, ReceiveError};
use bus::{Bus, ByteStream};
use contract::{ApiError, SessionId, image::FileSource};
use nix::fcntl::OFlag;
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use super::{super::storage_error, Limits, Reporter, Staging, directory, incoming::Incoming};
use crate::files;

/// Its name in the staging's directory.
pub(in crate::image) const GIVEN: &str = "given";
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
        FileSource::Upload { session, .. } => receive(staging, &bus_of(staging)?, *session).await,
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

/// Takes an upload to its end, and tells whoever sends it how that went.
async fn receive(staging: &Staging, bus: &Bus, session: SessionId) -> Result<(), ApiError> {
    staging.progress.phase("receiving", 0);
    let stream = ByteStream::accept(bus, session).await?;
    let incoming = Incoming::new(stream, staging.cancel.clone());
    let limits = staging.options.limits;
    let received = staging
        .blocking(move |dir, progress, cancel| {
            let mut incoming = incoming;
            let into = Into { dir, limits: &limits, progress, cancel };
            let outcome = into.create().and_then(|file| {
                let received = sparse::receive(&mut incoming, &file, limits.unpacked, into.go_on());
                received.map(drop).map_err(|error| unreceived(&into, &error))
            });
            Ok((outcome, incoming.into_inner()))
        })
        .await;
    let (outcome, mut stream) = received?;
    match &outcome {
        Ok(()) => {
            let shut = stream.shutdown().await;
            tracing::debug!(?shut, "an upload was taken");
        }
        Err(error) => stream.reset(error.message.clone()).await,
    }
    outcome
}

fn unreceived(into: &Into<'_>, error: &ReceiveError) -> ApiError {
    match error {
        ReceiveError::TooLarge(_) => into.too_large(),
        ReceiveError::Malformed(_) => ApiError::invalid_argument(format!("the upload cannot be used: {error}"))
            .hint("it may come from a client of another version"),
        ReceiveError::Disk(error) => into.failed(error, |error| storage_error(&into.path(), error)),
        ReceiveError::Stream(error) => into.failed(error, |error| match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
                ApiError::unavailable(format!("the upload broke off: {error}")).hint("begin it again")
            }
            _ => ApiError::invalid_argument(format!("the upload is damaged: {error}")).hint("begin it again"),
        }),
    }
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

//! A **directory** becomes an archive: read by GNU tar, which keeps owners, extended attributes, hard links, devices and times as they
//! are, and follows no link.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::Path,
    process::{Child, ExitStatus},
    time::Duration,
};

use archive::program;
use contract::ApiError;
use nix::sys::resource::{Resource, setrlimit};

use super::{
    super::{storage_error, tool::end_with},
    given::Into,
};
use crate::files;

/// How often the archive is looked at while it is written.
const LOOK: Duration = Duration::from_millis(50);
/// How far above its limit the kernel lets the archive come, should nobody look at it any more.
const OVER: u64 = 1 << 20;

/// Writes the archive of an open directory.
///
/// # Errors
/// A file cannot be read or changes meanwhile, it is over a limit, or the disk is full.
pub(super) fn pack(into: &Into<'_>, wanted: &Path, directory: &File) -> Result<(), ApiError> {
    into.progress.phase("copying", 0);
    let path = into.path();
    let archive = File::create(&path).map_err(|error| storage_error(&path, &error))?;
    let out = archive.try_clone().map_err(|error| storage_error(&path, &error))?;
    // By the descriptor: the directory stays the one that was allowed.
    let directory = format!("/proc/self/fd/{}", directory.as_raw_fd());
    if let Some(other) = program::mounted_below(Path::new(&directory)).first() {
        return Err(ApiError::failed_precondition(format!("{} is another filesystem", other.display()))
            .hint("unmount it, or copy what is there: an archive of a directory has the files of one filesystem"));
    }
    let mut command = program::whole(Path::new(&directory));
    let (parent, most) = (nix::unistd::getpid(), into.limits.unpacked.saturating_add(OVER));
    // SAFETY: between fork and exec only system calls are made, and no memory is allocated.
    unsafe {
        command.pre_exec(move || {
            setrlimit(Resource::RLIMIT_FSIZE, most, most)?;
            end_with(parent)
        });
    }
    let spawned = command.stdout(out).spawn();
    let mut child = spawned.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            ApiError::failed_precondition("the host lacks tar").hint("install it: apt-get install tar")
        }
        _ => ApiError::internal(format!("tar cannot be run: {error}")),
    })?;
    let said = child.stderr.take().map(|stderr| std::thread::spawn(move || program::complaint(stderr)));
    let ended = wait(into, &archive, &mut child);
    if ended.is_err() {
        let killed = child.kill().and_then(|()| child.wait());
        tracing::debug!(?killed, "tar was ended");
    }
    let said = said.and_then(|thread| thread.join().ok()).unwrap_or_default();
    let (shown, ended) = (wanted.display(), ended?);
    match ended.code() {
        Some(0) => Ok(()),
        Some(program::CHANGED) => Err(ApiError::aborted(format!("{shown} changed while it was read: {said}"))
            .hint("register it when nothing writes there")),
        _ => Err(ApiError::failed_precondition(format!("{shown} cannot be read: {said}"))),
    }
}

/// Looks after tar until it has ended, and ends it where there is reason to.
fn wait(into: &Into<'_>, archive: &File, child: &mut Child) -> Result<ExitStatus, ApiError> {
    let mut seen = 0;
    loop {
        let ended = child.try_wait().map_err(|error| ApiError::internal(format!("tar is lost: {error}")))?;
        let written = archive.metadata().map_err(|error| storage_error(&into.path(), &error))?.len();
        if let Some(status) = ended.filter(|_| written <= into.limits.unpacked) {
            return Ok(status);
        }
        into.progress.add(written - seen);
        seen = written;
        let free = files::free_bytes(into.dir).map_err(|error| storage_error(into.dir, &error))?;
        let reason = if into.cancel.is_cancelled() {
            Some(ApiError::cancelled("the staging was discarded"))
        } else if written > into.limits.unpacked {
            Some(into.too_large())
        } else if free < into.limits.reserve {
            Some(storage_error(&into.path(), &io::ErrorKind::StorageFull.into()))
        } else {
            None
        };
        if let Some(reason) = reason {
            return Err(reason);
        }
        std::thread::sleep(LOOK);
    }
}

//! **Freezing**: for as long as the host copies the disk, nothing is written to it (ioctl_fifreeze(2)); everything before is on it.
//!
//! A frozen VM is a dead one to whoever works in it, so it thaws in whatever becomes of the host: when its stream ends, and by a thread
//! that does nothing else once the time is up. Nothing here opens a file while anything is frozen. An agent that died in the middle is
//! followed by one that thaws first ([`thaw_leftovers`]).

mod mounts;

use std::{
    ffi::c_int,
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

use contract::{
    ApiError,
    guest::{FREEZE_MAX, Reply},
};
use nix::errno::Errno;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
};

use crate::agent::MuxStream;

nix::ioctl_readwrite!(
    /// `FIFREEZE`.
    fifreeze, b'X', 119, c_int
);
nix::ioctl_readwrite!(
    /// `FITHAW`.
    fithaw, b'X', 120, c_int
);

/// Where mounts are listed.
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Whether somebody has it frozen.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Freezes the VM's file systems, answers, and thaws them when the host sends something or ends its side of the stream; then it is
/// answered whether they were frozen until then.
pub async fn serve(mut stream: MuxStream, seconds: u32) {
    if TAKEN.swap(true, Ordering::SeqCst) {
        return answer(stream, Reply::Error(ApiError::busy("the VM's file systems are frozen already"))).await;
    }
    let limit = Duration::from_secs(u64::from(seconds)).min(FREEZE_MAX);
    let frozen = tokio::task::spawn_blocking(move || freeze(limit)).await;
    let frozen = frozen.unwrap_or_else(|error| Err(ApiError::internal(format!("freezing failed: {error}"))));
    let reply = match frozen {
        Err(error) => Reply::Error(error),
        Ok(Frozen { release, thawed }) => {
            let (mut byte, whole) = ([0; 1], stream.clone());
            if stream.write_reply(&Reply::Ok).await.is_ok() {
                tokio::select! {
                    read = stream.read(&mut byte) => tracing::debug!(?read, "the host is done with the frozen disk"),
                    () = whole.closed() => {}
                }
            }
            // It may be over already.
            release.send(()).unwrap_or_default();
            match thawed.await {
                Ok(true) => Reply::Ok,
                _ => Reply::Error(ApiError::aborted(format!("the VM thawed by itself after {} s", limit.as_secs()))),
            }
        }
    };
    TAKEN.store(false, Ordering::SeqCst);
    answer(stream, reply).await;
}

async fn answer(mut stream: MuxStream, reply: Reply) {
    if stream.write_reply(&reply).await.is_ok() {
        stream.shutdown().await.unwrap_or_default();
    }
}

/// File systems that are frozen, until it is dropped or their time is up.
struct Frozen {
    release: mpsc::Sender<()>,
    /// Whether they were until they were released.
    thawed: oneshot::Receiver<bool>,
}

/// Freezes all file systems on disks. Blocking: everything that is not on them yet is written first.
fn freeze(limit: Duration) -> Result<Frozen, ApiError> {
    let failed = |error: io::Error| ApiError::internal(format!("the VM's file systems cannot be found: {error}"));
    let mut files = Vec::new();
    for path in mounts::writable(&fs::read_to_string(MOUNTINFO).map_err(failed)?) {
        match File::open(&path) {
            Ok(file) => files.push((path, file)),
            // Mounted over; what it is on is there under another name, or nowhere.
            Err(error) => tracing::warn!(%error, path = %path.display(), "a file system is not frozen"),
        }
    }
    if !files.iter().any(|(path, _)| path == Path::new("/")) {
        return Err(ApiError::failed_precondition("the VM's root file system is none that can be frozen"));
    }
    // Most of it is written before anything stands still.
    nix::unistd::sync();
    let (files, expired) = (Arc::new(files), Arc::new(AtomicBool::new(false)));
    let frozen = guard(limit, files.clone(), expired.clone()).map_err(failed)?;
    for (path, file) in files.iter() {
        let mut ignored = 0;
        // SAFETY: the descriptor is open, and the kernel does not look at the argument.
        let outcome = unsafe { fifreeze(file.as_raw_fd(), &raw mut ignored) };
        match outcome {
            Ok(_) => {}
            Err(Errno::EOPNOTSUPP) if path != Path::new("/") => {}
            // Dropped, what is frozen already is released.
            Err(errno) => return Err(refused(path, errno)),
        }
    }
    // The guard may have thawed while the last of them was being frozen.
    if expired.load(Ordering::SeqCst) {
        thaw(&files);
        return Err(ApiError::failed_precondition(format!(
            "the VM's file systems did not freeze in {} s",
            limit.as_secs()
        )));
    }
    Ok(frozen)
}

fn refused(path: &Path, errno: Errno) -> ApiError {
    let why = match errno {
        Errno::EBUSY => "somebody in the VM has frozen it".to_owned(),
        Errno::EOPNOTSUPP => "its kind cannot".to_owned(),
        other => other.to_string(),
    };
    ApiError::failed_precondition(format!("the VM's file system at {} does not freeze: {why}", path.display()))
}

/// Starts the thread that thaws: when it is released, or by itself once the time is up.
fn guard(limit: Duration, files: Arc<Vec<(std::path::PathBuf, File)>>, expired: Arc<AtomicBool>) -> io::Result<Frozen> {
    let (release, released) = mpsc::channel();
    let (over, thawed) = oneshot::channel();
    std::thread::Builder::new().name("thaw".to_owned()).spawn(move || {
        let late = released.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        expired.store(late, Ordering::SeqCst);
        thaw(&files);
        over.send(!late).unwrap_or_default();
        if late {
            tracing::warn!("the VM's file systems thawed by themselves");
        }
    })?;
    Ok(Frozen { release, thawed })
}

/// Thaws the last that was frozen first. One that is not frozen is no error.
fn thaw(files: &[(std::path::PathBuf, File)]) {
    for (path, file) in files.iter().rev() {
        let mut ignored = 0;
        // SAFETY: as in `freeze`.
        match unsafe { fithaw(file.as_raw_fd(), &raw mut ignored) } {
            Ok(_) | Err(Errno::EINVAL | Errno::EOPNOTSUPP) => {}
            Err(errno) => tracing::error!("the file system at {} does not thaw: {errno}", path.display()),
        }
    }
}

/// Thaws what an agent left frozen that died in the middle.
pub fn thaw_leftovers() {
    let found = fs::read_to_string(MOUNTINFO).map(|text| mounts::writable(&text)).unwrap_or_default();
    let open = found.into_iter().filter_map(|path| File::open(&path).ok().map(|file| (path, file)));
    thaw(&open.collect::<Vec<_>>());
}

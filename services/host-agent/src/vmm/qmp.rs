//! QEMU's monitor (QMP, docs/interop/qmp-spec): one short conversation a command, as a monitor talks to one client at a time.

use std::{fs::File, io, os::fd::AsRawFd, path::Path, time::Duration};

use qapi::{
    futures::QmpStreamTokio,
    qmp::{self, QmpCommand},
};
use tokio::time::timeout;

use super::names;

/// How long a conversation may take: milliseconds, but for a machine that is very busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pauses or resumes the guest's processors; a repeat is fine.
///
/// # Errors
/// The VMM does not answer, or has no monitor (an older host-agent started it).
pub async fn set_paused(dir: &Path, paused: bool) -> io::Result<()> {
    if paused { execute(dir, qmp::stop {}).await.map(drop) } else { execute(dir, qmp::cont {}).await.map(drop) }
}

async fn execute<C: QmpCommand + 'static>(dir: &Path, command: C) -> io::Result<C::Ok> {
    let conversation = async {
        // A unix socket's path has at most 107 bytes; through a descriptor of the directory it is always short.
        let dir = File::open(dir)?;
        let path = format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), names::MONITOR);
        let stream = QmpStreamTokio::open_uds(path).await?.negotiate().await?;
        let (monitor, events) = stream.spawn_tokio();
        let answer = monitor.execute(command).await.map_err(io::Error::other);
        events.abort();
        answer
    };
    timeout(PATIENCE, conversation).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

//! QEMU's monitor (QMP, docs/interop/qmp-spec): one short conversation a command, as a monitor talks to one client at a time.

use std::{fs::File, io, os::fd::AsRawFd, path::Path, time::Duration};

use contract::{MebiBytes, usage::DiskIo};
use qapi::{
    Command,
    futures::QmpStreamTokio,
    qmp::{self, QmpCommand},
};
use serde::{Deserialize, Serialize};
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

/// What the guest has read from its disks and written to them since the VMM's start.
///
/// # Errors
/// The VMM does not answer within `patience`, or has no monitor.
pub async fn disk_io(dir: &Path, patience: Duration) -> io::Result<DiskIo> {
    let drives =
        timeout(patience, execute(dir, BlockStats {})).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let sum = |of: fn(&DriveStats) -> u64| drives.iter().map(|drive| of(&drive.stats)).sum();
    Ok(DiskIo {
        read_bytes: sum(|stats| stats.rd_bytes),
        read_operations: sum(|stats| stats.rd_operations),
        written_bytes: sum(|stats| stats.wr_bytes),
        write_operations: sum(|stats| stats.wr_operations),
    })
}

/// `query-blockstats`, of which few fields are read: those of `qapi` want what QEMU has from version 8.1 on only.
#[derive(Debug, Serialize)]
struct BlockStats {}

#[derive(Debug, Deserialize)]
struct Drive {
    stats: DriveStats,
}

#[derive(Debug, Deserialize)]
struct DriveStats {
    rd_bytes: u64,
    rd_operations: u64,
    wr_bytes: u64,
    wr_operations: u64,
}

impl Command for BlockStats {
    const NAME: &'static str = "query-blockstats";
    const ALLOW_OOB: bool = false;
    type Ok = Vec<Drive>;
}

impl QmpCommand for BlockStats {}

/// Makes the root disk of a running VM larger; a repeat is fine. Its guest sees that at once.
///
/// # Errors
/// The VMM does not answer, or the disk is full.
pub async fn resize_root(dir: &Path, size: MebiBytes) -> io::Result<()> {
    let size = i64::try_from(size.bytes()).map_err(io::Error::other)?;
    let command = qmp::block_resize { device: Some(names::ROOT_DRIVE.to_owned()), node_name: None, size };
    execute(dir, command).await.map(drop)
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

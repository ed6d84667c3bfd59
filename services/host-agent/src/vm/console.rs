//! Console logs and VMMs' own logs, bounded: a VMM appends to them by itself, so the agent frees the blocks of the head and
//! leaves offsets as they are.

use std::{fs::OpenOptions, io, os::fd::AsFd, path::Path, time::Duration};

use nix::fcntl::{FallocateFlags, fallocate};

use super::Vms;
use crate::{
    files,
    vmm::{jail::open_untrusted, names},
};

/// How much of a log is kept, in bytes.
pub const KEEP: u64 = 4 * 1024 * 1024;
/// How much it may have before its head is freed.
const MAX: u64 = 8 * 1024 * 1024;
/// How often logs are looked at.
const EVERY: Duration = Duration::from_secs(10);

/// Bounds the logs of all VMs, for ever.
pub async fn bound(vms: std::sync::Arc<Vms>) {
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        let root = vms.deps().state_dir.join("vms");
        let done = tokio::task::spawn_blocking(move || -> io::Result<()> {
            for dir in files::subdirectories(&root)? {
                // A guest can make its VMM complain without end; one that cannot be bounded does not keep others from it.
                for path in [names::CONSOLE, names::VMM_LOG].map(|name| dir.join(name)) {
                    if let Err(error) = trim(&path) {
                        tracing::warn!(%error, path = %path.display(), "a log was not bounded");
                    }
                }
            }
            Ok(())
        });
        if let Err(error) = done.await.map_err(io::Error::other).flatten() {
            tracing::warn!(%error, "logs were not bounded");
        }
    }
}

fn trim(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let file = match open_untrusted(path, OpenOptions::new().write(true)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let metadata = file.metadata()?;
    if metadata.blocks() * 512 > MAX {
        let head = i64::try_from(metadata.len().saturating_sub(KEEP)).unwrap_or(i64::MAX);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if head > 0 {
            fallocate(file.as_fd(), flags, 0, head)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_keeps_its_end_and_its_offsets() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.log");
        let text = vec![b'x'; usize::try_from(MAX).unwrap() + 100_000];
        std::fs::write(&path, &text).unwrap();
        trim(&path).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), text.len() as u64);
        assert!(metadata.blocks() * 512 <= KEEP + 8192, "{}", metadata.blocks());
        assert_eq!(std::fs::read(&path).unwrap().last(), Some(&b'x'));
    }
}

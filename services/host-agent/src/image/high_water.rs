//! The **high-water mark** of the host's disk: images and kernels stop coming before it is full, for the VMs' disks grow too.

use std::path::{Path, PathBuf};

use contract::ApiError;

use super::storage_error;

/// How full the disk may become by images and kernels when nothing else is said, in percent.
pub const HIGH_WATER: u8 = 90;

/// The mark of one filesystem.
#[derive(Clone, Debug)]
pub(crate) struct HighWater {
    dir: PathBuf,
    percent: u8,
}

impl HighWater {
    /// Of the filesystem of `dir`; 100 percent is no mark.
    pub(crate) fn new(dir: &Path, percent: u8) -> Self {
        Self { dir: dir.to_owned(), percent }
    }

    /// Refuses when the disk is fuller than the mark.
    ///
    /// # Errors
    /// `resource_exhausted`, or the filesystem cannot be asked.
    pub(crate) fn check(&self) -> Result<(), ApiError> {
        if self.percent >= 100 {
            return Ok(());
        }
        let full = full(&self.dir).map_err(|error| storage_error(&self.dir, &error.into()))?;
        if full < f64::from(self.percent) {
            return Ok(());
        }
        Err(ApiError::resource_exhausted(format!(
            "the host's disk is {full:.1} % full, and images and kernels may fill it to {} % (WARREN_DISK_HIGH_WATER)",
            self.percent
        ))
        .hint(
            "remove images with `warren image rm`, kernels with `warren kernel rm` or VMs, or give the host more disk",
        ))
    }
}

/// How full a filesystem is in percent, as df says it: of what is not the superuser's alone.
fn full(dir: &Path) -> nix::Result<f64> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    let used = stat.blocks().saturating_sub(stat.blocks_free());
    let all = used + stat.blocks_available();
    Ok(if all == 0 { 100.0 } else { used as f64 * 100.0 / all as f64 })
}

#[cfg(test)]
mod tests {
    use contract::ErrorCode;

    use super::*;

    #[test]
    fn a_disk_over_its_mark_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let full = full(dir.path()).unwrap();
        assert!((0.0..=100.0).contains(&full), "{full}");
        let of = |percent| HighWater::new(dir.path(), percent).check();
        assert_eq!(of(0).unwrap_err().code, ErrorCode::ResourceExhausted);
        of(100).unwrap();
    }
}

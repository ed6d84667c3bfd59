//! A **disk driver**: how a VM's root becomes a clone of its image's root filesystem. The host has one, the best its state
//! directory's filesystem and its VMM can do, or the one the operator asks for.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
    path::Path,
};

use contract::MebiBytes;

use super::{qcow2, sparse};
use crate::handles::DiskHandle;

nix::ioctl_write_int_bad!(
    /// `FICLONE` (ioctl_ficlonerange(2)): shares all blocks of another file.
    ficlone,
    0x4004_9409
);

/// The drivers, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Shares the image's blocks on filesystems that can (XFS, btrfs): a clone takes a tenth of a millisecond.
    Reflink,
    /// A qcow2 overlay over the image, for VMMs that read it, on any filesystem.
    Qcow2,
    /// A copy that leaves out holes: on any filesystem and for any VMM, and as slow as the image has data.
    Copy,
}

/// What the operator asks for (`WARREN_DISK`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// The best there is.
    #[default]
    Auto,
    /// This one.
    Driver(Driver),
}

impl std::str::FromStr for Wanted {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "reflink" => Ok(Self::Driver(Driver::Reflink)),
            "qcow2" => Ok(Self::Driver(Driver::Qcow2)),
            "copy" => Ok(Self::Driver(Driver::Copy)),
            other => Err(format!("{other:?} is not one of auto, reflink, qcow2, copy")),
        }
    }
}

/// Why a driver cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The filesystem cannot share blocks.
    #[error("WARREN_DISK is reflink, but the filesystem of {0} cannot share blocks: use XFS or btrfs there, or auto")]
    NoReflink(String),
    /// The VMM reads raw disks only.
    #[error("WARREN_DISK is qcow2, but {0} reads raw disks only: use auto")]
    NoQcow2(&'static str),
}

impl Driver {
    /// The driver of a host whose VMM is called `vmm` and may read qcow2.
    ///
    /// # Errors
    /// The operator asks for one that does not work here.
    pub fn choose(state_dir: &Path, wanted: Wanted, vmm: &'static str, reads_qcow2: bool) -> Result<Self, DriverError> {
        match wanted {
            Wanted::Driver(Self::Reflink) if !shares_blocks(state_dir) => {
                Err(DriverError::NoReflink(state_dir.display().to_string()))
            }
            Wanted::Driver(Self::Qcow2) if !reads_qcow2 => Err(DriverError::NoQcow2(vmm)),
            Wanted::Driver(driver) => Ok(driver),
            Wanted::Auto if shares_blocks(state_dir) => Ok(Self::Reflink),
            Wanted::Auto if reads_qcow2 => Ok(Self::Qcow2),
            Wanted::Auto => Ok(Self::Copy),
        }
    }

    /// Its name, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reflink => "reflink",
            Self::Qcow2 => "qcow2",
            Self::Copy => "copy",
        }
    }

    /// The disk of a VM that is made by it.
    pub fn handle(self) -> DiskHandle {
        let (file, format) = match self {
            Self::Qcow2 => ("root.qcow2", "qcow2"),
            Self::Reflink | Self::Copy => ("root.img", "raw"),
        };
        DiskHandle { file: file.to_owned(), format: format.to_owned() }
    }

    /// Makes a clone of `size`; what stands at `path` from an interrupted attempt is made anew.
    pub(super) fn clone_image(self, image: &Path, path: &Path, disk: &DiskHandle, size: MebiBytes) -> io::Result<()> {
        if disk.format == "qcow2" {
            return qcow2::create(image, path, size.bytes());
        }
        let from = File::open(image)?;
        let to = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        match self {
            Self::Reflink => reflink(&from, &to)?,
            // Handles that an agent with another driver wrote keep their format.
            Self::Qcow2 | Self::Copy => sparse::copy(&from, &to)?,
        }
        to.set_len(size.bytes())
    }
}

fn shares_blocks(dir: &Path) -> bool {
    let clone = || -> io::Result<()> {
        let from = tempfile::tempfile_in(dir)?;
        let to = tempfile::tempfile_in(dir)?;
        reflink(&from, &to)
    };
    clone().is_ok()
}

pub(super) fn reflink(from: &File, to: &File) -> io::Result<()> {
    // SAFETY: both descriptors are open files of ours, and FICLONE takes a descriptor as its argument.
    unsafe { ficlone(to.as_raw_fd(), from.as_raw_fd()) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_driver_is_taken_and_an_impossible_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let choose = |wanted, reads_qcow2| Driver::choose(dir.path(), wanted, "firecracker", reads_qcow2);
        assert_eq!(choose("copy".parse().unwrap(), true).unwrap(), Driver::Copy);
        assert!(choose("qcow2".parse().unwrap(), false).unwrap_err().to_string().contains("firecracker"));
        assert!("lvm".parse::<Wanted>().unwrap_err().contains("auto, reflink, qcow2, copy"));
        if shares_blocks(dir.path()) {
            assert_eq!(choose(Wanted::Auto, false).unwrap(), Driver::Reflink);
        } else {
            assert_eq!(
                (choose(Wanted::Auto, true).unwrap(), choose(Wanted::Auto, false).unwrap()),
                (Driver::Qcow2, Driver::Copy)
            );
            assert!(choose("reflink".parse().unwrap(), true).unwrap_err().to_string().contains("cannot share blocks"));
        }
    }
}

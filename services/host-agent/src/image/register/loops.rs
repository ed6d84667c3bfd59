//! A **loop device** that only reads, and is gone with its last user, whoever dies (loop(4)).

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
};

use nix::{errno::Errno, libc};

/// `LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR`.
const FLAGS: u32 = 1 | 4;
/// How often another one is asked for where somebody else was quicker.
const TRIES: usize = 16;

/// `struct loop_config` of linux/loop.h with its `struct loop_info64`.
#[repr(C)]
#[derive(Default)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    /// Of the device, inode and place; the kernel fills in what it knows.
    places: [u64; 5],
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    /// The names, the key and what belongs to it.
    names: [[u64; 8]; 2],
    key: [u64; 4],
    init: [u64; 2],
    reserved: [u64; 8],
}

nix::ioctl_none_bad!(
    /// `LOOP_CTL_GET_FREE`: the number of a device nobody uses.
    loop_ctl_get_free,
    0x4c82
);
nix::ioctl_write_ptr_bad!(
    /// `LOOP_CONFIGURE`: gives a device its file.
    loop_configure,
    0x4c0a,
    LoopConfig
);

/// The device. Dropped, it is gone once nothing has it mounted.
pub(super) struct Loop {
    pub path: PathBuf,
    _device: File,
}

impl Loop {
    /// One for a file.
    ///
    /// # Errors
    /// The kernel has no such devices or they are all in use.
    pub(super) fn new(file: &File) -> io::Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        let descriptor = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
        let config = LoopConfig { fd: descriptor, flags: FLAGS, ..LoopConfig::default() };
        for _ in 0..TRIES {
            // SAFETY: it takes no argument.
            let number = unsafe { loop_ctl_get_free(control.as_raw_fd()) }?;
            let path = Path::new("/dev").join(format!("loop{number}"));
            let device = OpenOptions::new().read(true).custom_flags(libc::O_CLOEXEC).open(&path)?;
            match configure(device.as_raw_fd(), &config) {
                Ok(()) => return Ok(Self { path, _device: device }),
                Err(Errno::EBUSY) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::EBUSY.into())
    }
}

fn configure(device: RawFd, config: &LoopConfig) -> nix::Result<()> {
    // SAFETY: the kernel reads a `struct loop_config`, which this is.
    unsafe { loop_configure(device, config) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_as_long_as_the_kernels() {
        // 4 + 4 + 232 + 64 bytes (linux/loop.h).
        assert_eq!(size_of::<LoopConfig>(), 304);
    }
}

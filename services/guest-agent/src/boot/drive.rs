//! The VM's two disks: the config drive, told by its magic number, and the root filesystem.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use contract::config_drive::{JSON_MAX, MAGIC, Settings};

use super::{BootError, During};

/// Where the contract puts the root filesystem.
const FIRST: &str = "/dev/vda";
/// Where the contract puts the config drive.
const SECOND: &str = "/dev/vdb";
/// The most bytes of a config drive that are read: its JSON, header and padding.
const READ_MAX: u64 = JSON_MAX as u64 + 8192;
/// How often a missing disk is looked for.
const POLL: Duration = Duration::from_millis(5);

/// What the disks are.
pub struct Disks {
    /// The root filesystem's device.
    pub root: PathBuf,
    /// What the config drive says.
    pub settings: Settings,
}

/// Waits for both disks and reads the config drive. A VMM that numbers its disks the other way round is
/// forgiven, because the magic number tells them apart.
pub fn find(wait: Duration) -> Result<Disks, BootError> {
    let deadline = Instant::now() + wait;
    for device in [FIRST, SECOND] {
        while !Path::new(device).exists() {
            if Instant::now() > deadline {
                let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
                return Err(missing).during(format_args!("find the disk {device}"));
            }
            std::thread::sleep(POLL);
        }
    }
    let (drive, root) = if starts_with_magic(FIRST) { (FIRST, SECOND) } else { (SECOND, FIRST) };
    let mut bytes = Vec::new();
    File::open(drive)
        .and_then(|file| file.take(READ_MAX).read_to_end(&mut bytes))
        .during(format_args!("read the config drive {drive}"))?;
    let settings = Settings::from_drive(&bytes).during(format_args!("use the config drive {drive}"))?;
    Ok(Disks { root: root.into(), settings })
}

fn starts_with_magic(device: &str) -> bool {
    let mut magic = [0; MAGIC.len()];
    File::open(device).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == MAGIC
}

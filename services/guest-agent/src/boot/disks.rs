//! Data disks: found by their serial numbers, mounted where the settings say, and grown to their size.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use contract::config_drive::DiskMount;
use nix::mount::MsFlags;

use super::{BootError, During, drive, root};

/// How often a missing disk is looked for.
const POLL: Duration = Duration::from_millis(5);

/// Mounts one data disk in the root that is now in use.
pub fn mount(disk: &DiskMount, wait: Duration) -> Result<(), BootError> {
    let device = find(Path::new("/sys/block"), &disk.serial, wait)?;
    fs::create_dir_all(&disk.path).during(format_args!("create {}", disk.path))?;
    nix::mount::mount(Some(&device), disk.path.as_str(), Some("ext4"), MsFlags::MS_RELATIME, None::<&str>)
        .during(format_args!("mount the data disk {} at {}", disk.serial, disk.path))?;
    root::grow(&device, Path::new(&disk.path))
}

/// A disk, once the kernel knows it to have so many bytes (`size` of sysfs counts sectors of 512).
pub fn larger(block: &Path, serial: &str, bytes: u64, wait: Duration) -> Result<PathBuf, BootError> {
    let deadline = Instant::now() + wait;
    let device = find(block, serial, wait)?;
    let size = block.join(device.file_name().unwrap_or_default()).join("size");
    loop {
        let sectors = fs::read_to_string(&size).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let has = sectors.unwrap_or_default().saturating_mul(512);
        if has >= bytes {
            return Ok(device);
        }
        if Instant::now() > deadline {
            let short = std::io::Error::other(format!("it has {has} bytes"));
            return Err(short).during(format_args!("see {bytes} bytes of the disk {serial}"));
        }
        std::thread::sleep(POLL);
    }
}

fn find(block: &Path, serial: &str, wait: Duration) -> Result<PathBuf, BootError> {
    let deadline = Instant::now() + wait;
    loop {
        let disks = drive::serials(block).during("list the disks")?;
        if let Some((device, _)) = disks.into_iter().find(|(_, found)| found == serial) {
            return Ok(device);
        }
        if Instant::now() > deadline {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(missing).during(format_args!("find the data disk {serial}"));
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_told_by_its_serial_number() {
        let block = tempfile::tempdir().unwrap();
        for (disk, serial) in [("vda", ""), ("vdc", "work\n"), ("vdd", "work2\n")] {
            fs::create_dir(block.path().join(disk)).unwrap();
            fs::write(block.path().join(disk).join("serial"), serial).unwrap();
        }
        assert_eq!(find(block.path(), "work", Duration::ZERO).unwrap(), Path::new("/dev/vdc"));
        fs::write(block.path().join("vdc/size"), "4096\n").unwrap();
        let larger = |bytes| larger(block.path(), "work", bytes, Duration::ZERO);
        assert_eq!(larger(2 << 20).unwrap(), Path::new("/dev/vdc"));
        assert!(larger(4 << 20).unwrap_err().to_string().contains("4194304 bytes"));
        assert!(find(block.path(), "home", Duration::ZERO).unwrap_err().to_string().contains("home"));
    }
}

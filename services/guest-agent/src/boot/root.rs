//! The root filesystem: mounted, grown to its disk, and made the root of everything.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
};

use nix::{
    mount::MsFlags,
    unistd::{chdir, chroot},
};

use super::{BootError, During};

/// Where the root filesystem is mounted until it becomes the root.
pub const MOUNT: &str = "/newroot";
/// What moves along.
const MOVED: [&str; 3] = ["dev", "proc", "sys"];
/// Where an ext4 superblock is, in bytes, and how much of it is read.
const SUPERBLOCK: (u64, usize) = (1024, 1024);
const EXT4_MAGIC: u16 = 0xef53;

nix::ioctl_write_ptr!(ext4_resize, b'f', 16, u64);

/// Mounts the root filesystem at [`MOUNT`], read-write.
pub fn mount(device: &Path) -> Result<(), BootError> {
    fs::create_dir_all(MOUNT).during(format_args!("create {MOUNT}"))?;
    nix::mount::mount(Some(device), MOUNT, Some("ext4"), MsFlags::MS_RELATIME, None::<&str>)
        .during(format_args!("mount the root filesystem {} (ext4)", device.display()))
}

/// Grows the mounted filesystem to its disk, online.
pub fn grow(device: &Path, mounted: &Path) -> Result<(), BootError> {
    let mut disk = File::open(device).during(format_args!("open {}", device.display()))?;
    let bytes = disk.seek(SeekFrom::End(0)).during("learn the disk's size")?;
    let mut superblock = [0; SUPERBLOCK.1];
    disk.seek(SeekFrom::Start(SUPERBLOCK.0))
        .and_then(|_| disk.read_exact(&mut superblock))
        .during("read the superblock")?;
    let Some((blocks, block_size)) = parse_superblock(&superblock) else {
        return Err("its superblock is damaged").during(format_args!("read {}", device.display()));
    };
    let wanted = bytes / block_size;
    if wanted <= blocks {
        return Ok(());
    }
    let root = File::open(mounted).during(format_args!("open {}", mounted.display()))?;
    // SAFETY: the ioctl reads one u64, which lives until it returns.
    unsafe { ext4_resize(root.as_raw_fd(), &wanted) }
        .during(format_args!("resize it from {blocks} to {wanted} blocks"))?;
    Ok(())
}

/// How many blocks a filesystem has, and their size in bytes.
fn parse_superblock(superblock: &[u8; SUPERBLOCK.1]) -> Option<(u64, u64)> {
    let u32_at =
        |at: usize| u32::from_le_bytes([superblock[at], superblock[at + 1], superblock[at + 2], superblock[at + 3]]);
    if u16::from_le_bytes([superblock[56], superblock[57]]) != EXT4_MAGIC {
        return None;
    }
    let block_size = 1024u64.checked_shl(u32_at(24)).filter(|size| *size <= 65536 && *size >= 1024)?;
    const INCOMPAT_64BIT: u32 = 0x80;
    let high = if u32_at(96) & INCOMPAT_64BIT != 0 { u32_at(336) } else { 0 };
    Some((u64::from(high) << 32 | u64::from(u32_at(4)), block_size))
}

/// Makes [`MOUNT`] the root of this process and of all after it, and frees the initramfs' memory.
pub fn switch() -> Result<(), BootError> {
    for name in MOVED {
        let target = format!("{MOUNT}/{name}");
        if !Path::new(&target).is_dir() {
            fs::create_dir_all(&target).during(format_args!("create {target}"))?;
        }
        nix::mount::mount(
            Some(format!("/{name}").as_str()),
            target.as_str(),
            None::<&str>,
            MsFlags::MS_MOVE,
            None::<&str>,
        )
        .during(format_args!("move /{name}"))?;
    }
    if let Ok(metadata) = fs::metadata("/") {
        remove_contents(Path::new("/"), metadata.dev());
    }
    chdir(MOUNT).during(format_args!("enter {MOUNT}"))?;
    nix::mount::mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .during("move the root filesystem")?;
    chroot(".").during("change the root")?;
    chdir("/").during("enter the root")
}

/// Removes what is on the filesystem `device` below `directory`. Only frees memory, so failures do not matter.
fn remove_contents(directory: &Path, device: u64) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        if metadata.dev() != device {
            continue;
        }
        if metadata.is_dir() {
            remove_contents(&entry.path(), device);
            fs::remove_dir(entry.path()).unwrap_or_default();
        } else {
            fs::remove_file(entry.path()).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_tells_blocks_and_their_size() {
        let mut superblock = [0; 1024];
        assert_eq!(parse_superblock(&superblock), None);
        superblock[56..58].copy_from_slice(&EXT4_MAGIC.to_le_bytes());
        superblock[4..8].copy_from_slice(&65536u32.to_le_bytes());
        superblock[24] = 2;
        assert_eq!(parse_superblock(&superblock), Some((65536, 4096)));
        superblock[96] = 0x80;
        superblock[336] = 1;
        assert_eq!(parse_superblock(&superblock), Some((65536 + (1 << 32), 4096)));
        superblock[24] = 40;
        assert_eq!(parse_superblock(&superblock), None);
    }
}

//! The **file systems** that are frozen: those on disks that are mounted here to be written to.

use std::{collections::HashSet, ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

/// Kinds of file systems that have something to freeze.
const KINDS: [&str; 8] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "nilfs2"];

/// Where each is mounted, the one mounted last first: whatever lies in a file of another comes before that. Reads `mountinfo` of
/// proc(5).
pub(super) fn writable(mountinfo: &str) -> Vec<PathBuf> {
    let mut seen = HashSet::new();
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(2);
        let (device, point) = (mount.next()?, mount.nth(1)?);
        let mut kind = kind.split(' ');
        let (kind, options) = (kind.next()?, kind.nth(1)?);
        let written = options.split(',').all(|option| option != "ro");
        (KINDS.contains(&kind) && written && seen.insert(device)).then(|| unescaped(point))
    });
    let mut mounts: Vec<PathBuf> = mounts.collect();
    mounts.reverse();
    mounts
}

/// A path as the kernel writes it, with spaces and the like as `\040`.
fn unescaped(text: &str) -> PathBuf {
    let (mut path, mut bytes) = (Vec::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        let mut rest = bytes.clone();
        let digits = [rest.next(), rest.next(), rest.next()];
        match digits {
            [Some(a @ b'0'..=b'3'), Some(b @ b'0'..=b'7'), Some(c @ b'0'..=b'7')] if byte == b'\\' => {
                path.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                bytes = rest;
            }
            _ => path.push(byte),
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_on_disks_is_frozen_once_and_the_deepest_first() {
        let mountinfo = "\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
22 21 0:5 / /dev rw,nosuid shared:2 - devtmpfs devtmpfs rw,size=4k
23 21 254:32 / /data\\040of\\134me rw - xfs /dev/vdc rw,attr2
24 21 254:0 /home /srv/home ro,relatime - ext4 /dev/vda rw
25 21 7:0 / /data/loop rw - ext4 /dev/loop0 rw
26 21 7:1 / /ro rw - ext4 /dev/loop1 ro,norecovery
27 21 0:40 / /run rw - tmpfs tmpfs rw
nonsense";
        assert_eq!(writable(mountinfo), ["/data/loop", "/data of\\me", "/"].map(PathBuf::from));
        assert_eq!(writable(""), Vec::<PathBuf>::new());
    }
}

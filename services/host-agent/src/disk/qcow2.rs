//! qcow2 overlays, written directly (QEMU's docs/interop/qcow2.txt, version 3): a header, one refcount block and
//! an empty L1 table are all a fresh overlay has, and starting `qemu-img` costs more than writing them.

use std::{
    fs::OpenOptions,
    io,
    io::Write,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::Path,
};

pub(super) const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Guest bytes one L1 entry covers: a cluster of eight-byte L2 entries, a cluster each.
const L1_COVERS: u64 = CLUSTER / 8 * CLUSTER;
/// The largest disk whose refcounts fit one block of 16-bit entries.
const SIZE_MAX: u64 = 16 << 40;
const HEADER_LENGTH: u32 = 104;
const BACKING_FORMAT: u32 = 0xE279_2ACA;

/// Writes an overlay of `size` bytes over a raw image.
pub(super) fn create(backing: &Path, path: &Path, size: u64) -> io::Result<()> {
    let name = backing.as_os_str().as_bytes();
    if name.len() > 1023 || size > SIZE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the backing file's name or the disk is too long"));
    }
    let l1_entries = size.div_ceil(L1_COVERS);
    let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER).max(1);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    let mut first = header(name, size, l1_entries);
    first.resize(CLUSTER as usize, 0);
    // Cluster 1: the refcount table, with one block. Cluster 2: that block; all clusters so far are in use once.
    let mut table = (2 * CLUSTER).to_be_bytes().to_vec();
    table.resize(CLUSTER as usize, 0);
    let mut counts: Vec<u8> = std::iter::repeat_n(1u16.to_be_bytes(), (3 + l1_clusters) as usize).flatten().collect();
    counts.resize(CLUSTER as usize, 0);
    for part in [first, table, counts] {
        file.write_all(&part)?;
    }
    file.set_len((3 + l1_clusters) * CLUSTER)
}

const SIZE_AT: u64 = 24;

/// The size of an overlay as its guest sees it, in bytes.
pub(super) fn size(path: &Path) -> io::Result<u64> {
    let mut size = [0; 8];
    OpenOptions::new().read(true).open(path)?.read_exact_at(&mut size, SIZE_AT)?;
    Ok(u64::from_be_bytes(size))
}

/// Raises the size in an overlay's header. The L1 table lies in whole clusters and its unused entries are zero, so that
/// until those are used up (4 TiB a cluster) nothing else changes.
pub(super) fn grow(path: &Path, size: u64) -> io::Result<()> {
    const L1_ENTRIES_AT: u64 = 36;
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let (mut old, mut entries) = ([0; 8], [0; 4]);
    file.read_exact_at(&mut old, SIZE_AT)?;
    file.read_exact_at(&mut entries, L1_ENTRIES_AT)?;
    let room = u64::from(u32::from_be_bytes(entries)).next_multiple_of(CLUSTER / 8);
    let needed = size.div_ceil(L1_COVERS);
    if size <= u64::from_be_bytes(old) {
        return Ok(());
    }
    let entries = u32::try_from(needed).ok().filter(|_| needed <= room.max(CLUSTER / 8));
    let entries = entries.ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "the disk cannot grow past the next multiple of 4 TiB")
    })?;
    // The table first: a larger size over too short a table is what QEMU refuses.
    file.write_all_at(&entries.to_be_bytes(), L1_ENTRIES_AT)?;
    file.write_all_at(&size.to_be_bytes(), SIZE_AT)?;
    file.sync_all()
}

fn header(backing: &[u8], size: u64, l1_entries: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let backing_offset = u64::from(HEADER_LENGTH) + 8 + 8 + 8;
    out.extend_from_slice(b"QFI\xfb");
    out.extend_from_slice(&3u32.to_be_bytes());
    out.extend_from_slice(&backing_offset.to_be_bytes());
    out.extend_from_slice(&(backing.len() as u32).to_be_bytes());
    out.extend_from_slice(&CLUSTER_BITS.to_be_bytes());
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(&0u32.to_be_bytes()); // no encryption
    out.extend_from_slice(&(l1_entries as u32).to_be_bytes());
    out.extend_from_slice(&(3 * CLUSTER).to_be_bytes()); // L1 table
    out.extend_from_slice(&CLUSTER.to_be_bytes()); // refcount table
    out.extend_from_slice(&1u32.to_be_bytes()); // its clusters
    out.extend_from_slice(&0u32.to_be_bytes()); // snapshots
    out.extend_from_slice(&0u64.to_be_bytes());
    out.extend_from_slice(&[0; 24]); // no feature bits
    out.extend_from_slice(&4u32.to_be_bytes()); // 16-bit refcounts
    out.extend_from_slice(&HEADER_LENGTH.to_be_bytes());
    // Header extension: the backing file is raw, so that QEMU never guesses from what a guest wrote.
    out.extend_from_slice(&BACKING_FORMAT.to_be_bytes());
    out.extend_from_slice(&3u32.to_be_bytes());
    out.extend_from_slice(b"raw\0\0\0\0\0");
    out.extend_from_slice(&[0; 8]); // end of extensions
    out.extend_from_slice(backing);
    out
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn qemu_img_finds_nothing_wrong_with_an_overlay() {
        let dir = tempfile::tempdir().unwrap();
        let (image, overlay) = (dir.path().join("image"), dir.path().join("overlay"));
        std::fs::write(&image, vec![7; 1 << 20]).unwrap();
        for size in [1 << 20, 3 << 30, 16 << 40] {
            create(&image, &overlay, size).unwrap();
            let Ok(check) = Command::new("qemu-img").arg("check").arg(&overlay).output() else {
                println!("skipped: qemu-img is not installed");
                return;
            };
            assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
            let info = Command::new("qemu-img").args(["info", "--output=json"]).arg(&overlay).output().unwrap();
            let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
            assert_eq!(info["virtual-size"], size);
            assert_eq!(info["backing-filename-format"], "raw");
            assert_eq!(info["backing-filename"], image.to_str().unwrap());
        }
    }

    #[test]
    fn a_grown_overlay_is_as_good_as_one_made_so_and_never_shrinks() {
        let dir = tempfile::tempdir().unwrap();
        let (image, overlay) = (dir.path().join("image"), dir.path().join("overlay"));
        std::fs::write(&image, vec![7; 1 << 20]).unwrap();
        create(&image, &overlay, 1 << 30).unwrap();
        for (asked, size) in [(3u64 << 30, 3u64 << 30), (1 << 30, 3 << 30), (4 << 40, 4 << 40)] {
            grow(&overlay, asked).unwrap();
            let Ok(check) = Command::new("qemu-img").arg("check").arg(&overlay).output() else {
                println!("skipped: qemu-img is not installed");
                return;
            };
            assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
            let info = Command::new("qemu-img").args(["info", "--output=json"]).arg(&overlay).output().unwrap();
            let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
            assert_eq!((&info["virtual-size"], super::size(&overlay).unwrap()), (&serde_json::json!(size), size));
        }
        assert_eq!(grow(&overlay, 5 << 40).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}

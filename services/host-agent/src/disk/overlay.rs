//! Reading qcow2 overlays (QEMU's docs/interop/qcow2.txt): which of the guest's clusters an overlay has of its own. Only what
//! [`super::qcow2`] and QEMU make of it is understood; the file was written by a VMM, so nothing in it is believed.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::sparse;

/// Clusters of 512 bytes to 2 MiB are what QEMU makes.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// The most L1 entries that are looked at: those of 16 TiB in clusters of 64 KiB, and room.
const L1_MAX: u32 = 1 << 20;
/// Where a cluster is, in an L1 or L2 entry (bits 9 to 55).
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// The incompatible feature "dirty": refcounts may be wrong, which a reader does not look at.
const DIRTY: u64 = 1;

/// An overlay that is open for reading.
pub(super) struct Overlay<'a> {
    file: &'a File,
    length: u64,
    cluster_bits: u32,
    size: u64,
    l1: Vec<u64>,
}

/// What an overlay says of a run of the guest's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// They are the backing file's.
    Below,
    Zero,
    /// They are in the overlay, from this offset on.
    Here(u64),
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the overlay cannot be read: {why}"))
}

impl<'a> Overlay<'a> {
    /// Reads its header and first table.
    pub(super) fn open(file: &'a File) -> io::Result<Self> {
        let mut header = [0; 104];
        file.read_exact_at(&mut header, 0)?;
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap_or_default());
        let long = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().unwrap_or_default());
        let (cluster_bits, entries, table) = (word(20), word(36), long(40));
        if &header[..4] != b"QFI\xfb" || word(4) != 3 {
            return Err(invalid("it is no qcow2 of version 3"));
        }
        if !CLUSTER_BITS.contains(&cluster_bits) || entries > L1_MAX || word(32) != 0 || long(72) & !DIRTY != 0 {
            return Err(invalid("it has features that overlays of VMs do not have"));
        }
        let length = file.metadata()?.len();
        let bytes = u64::from(entries) * 8;
        if table.checked_add(bytes).is_none_or(|end| end > length) {
            return Err(invalid("its first table is beyond its end"));
        }
        let l1 = words(file, table, usize::try_from(bytes).map_err(io::Error::other)?)?;
        Ok(Self { file, length, cluster_bits, size: long(24), l1 })
    }

    /// The size of the disk as its guest sees it, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Writes the clusters it has of its own over what `to` has of the backing file, which must be as long as the disk.
    pub(super) fn lay(&self, to: &File, go_on: &dyn Fn(u64) -> bool) -> io::Result<()> {
        let cluster = 1u64 << self.cluster_bits;
        let mut buffer = vec![0; usize::try_from(cluster).map_err(io::Error::other)?];
        for (n, entry) in self.l1.iter().enumerate() {
            let first = (n as u64) << (2 * self.cluster_bits - 3);
            if first >= self.size || entry & OFFSET == 0 {
                continue;
            }
            let table = entry & OFFSET;
            self.check(table, cluster)?;
            for (m, entry) in words(self.file, table, buffer.len())?.into_iter().enumerate() {
                let at = first + ((m as u64) << self.cluster_bits);
                if at >= self.size {
                    break;
                }
                let length = cluster.min(self.size - at);
                match place(entry)? {
                    Place::Below => continue,
                    Place::Zero => sparse::zero(to, at, length)?,
                    Place::Here(offset) => {
                        self.check(offset, length)?;
                        let piece = &mut buffer[..usize::try_from(length).map_err(io::Error::other)?];
                        self.file.read_exact_at(piece, offset)?;
                        write(to, piece, at)?;
                    }
                }
                if !go_on(length) {
                    return Err(io::ErrorKind::Interrupted.into());
                }
            }
        }
        Ok(())
    }

    fn check(&self, offset: u64, length: u64) -> io::Result<()> {
        let inside =
            offset.checked_add(length).is_some_and(|end| end <= self.length.next_multiple_of(1 << self.cluster_bits));
        if inside { Ok(()) } else { Err(invalid("a cluster is beyond its end")) }
    }
}

fn place(entry: u64) -> io::Result<Place> {
    match entry {
        entry if entry & COMPRESSED != 0 => Err(invalid("it has compressed clusters")),
        entry if entry & ZERO != 0 => Ok(Place::Zero),
        entry if entry & OFFSET == 0 => Ok(Place::Below),
        entry => Ok(Place::Here(entry & OFFSET)),
    }
}

fn words(file: &File, at: u64, bytes: usize) -> io::Result<Vec<u64>> {
    let mut table = vec![0; bytes];
    file.read_exact_at(&mut table, at)?;
    Ok(table.chunks_exact(8).map(|word| u64::from_be_bytes(word.try_into().unwrap_or_default())).collect())
}

/// Zeros become a hole.
fn write(to: &File, piece: &[u8], at: u64) -> io::Result<()> {
    if piece.iter().all(|byte| *byte == 0) {
        return sparse::zero(to, at, piece.len() as u64);
    }
    to.write_all_at(piece, at)
}

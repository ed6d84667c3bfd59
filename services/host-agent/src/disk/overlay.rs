//! Reading qcow2 overlays (QEMU's docs/interop/qcow2.txt): which of the guest's clusters an overlay has of its own. Only what
//! [`super::qcow2`] and QEMU make of it is understood; the file was written by a VMM, so nothing in it is believed.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::{qcow2::CLUSTER_BITS, sparse};

/// The smallest stretch of zeros that becomes a hole, in bytes: the block of most filesystems.
const HOLE: usize = 4096;
/// The bytes that an overlay may have beyond an eighth more than its disk: its header and tables.
const LENGTH_SLACK: u64 = 1 << 30;
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
    /// Reads its header and first table. The disk has `most` bytes or, where it has not grown yet, less.
    pub(super) fn open(file: &'a File, most: u64) -> io::Result<Self> {
        let mut header = [0; 104];
        file.read_exact_at(&mut header, 0)?;
        let word = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap_or_default());
        let long = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().unwrap_or_default());
        let (size, entries, table) = (long(24), word(36), long(40));
        if &header[..4] != b"QFI\xfb" || word(4) != 3 {
            return Err(invalid("it is no qcow2 of version 3"));
        }
        if word(20) != CLUSTER_BITS || entries > L1_MAX || word(32) != 0 || long(72) & !DIRTY != 0 {
            return Err(invalid("it has features that overlays of VMs do not have"));
        }
        let length = file.metadata()?.len();
        if size > most || length > (size + size / 8).saturating_add(LENGTH_SLACK) {
            return Err(invalid("it is larger than the VM's disk"));
        }
        let bytes = u64::from(entries) * 8;
        if table.checked_add(bytes).is_none_or(|end| end > length) {
            return Err(invalid("its first table is beyond its end"));
        }
        let l1 = words(file, table, usize::try_from(bytes).map_err(io::Error::other)?)?;
        Ok(Self { file, length, size, l1 })
    }

    /// The size of the disk as its guest sees it, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Writes the clusters it has of its own over what `to` has of the backing file, which must be as long as the disk.
    pub(super) fn lay(&self, to: &File, go_on: &dyn Fn(u64) -> bool) -> io::Result<()> {
        let cluster = 1u64 << CLUSTER_BITS;
        let mut used = Used::new(self.length);
        let mut buffer = vec![0; usize::try_from(cluster).map_err(io::Error::other)?];
        for (n, entry) in self.l1.iter().enumerate() {
            let first = (n as u64) << (2 * CLUSTER_BITS - 3);
            if first >= self.size || entry & OFFSET == 0 {
                continue;
            }
            let table = entry & OFFSET;
            self.check(table, cluster)?;
            used.take(table)?;
            for (m, entry) in words(self.file, table, buffer.len())?.into_iter().enumerate() {
                let at = first + ((m as u64) << CLUSTER_BITS);
                if at >= self.size {
                    break;
                }
                let length = cluster.min(self.size - at);
                match place(entry)? {
                    Place::Below => continue,
                    Place::Zero => sparse::zero(to, at, length)?,
                    Place::Here(offset) => {
                        self.check(offset, length)?;
                        used.take(offset)?;
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
            offset.checked_add(length).is_some_and(|end| end <= self.length.next_multiple_of(1 << CLUSTER_BITS));
        if inside { Ok(()) } else { Err(invalid("a cluster is beyond its end")) }
    }
}

/// Which clusters of an overlay were found so far: none has two places, or a small file would become a disk of any size.
struct Used(Vec<u64>);

impl Used {
    fn new(length: u64) -> Self {
        Self(vec![0; (length >> CLUSTER_BITS) as usize / 64 + 1])
    }

    fn take(&mut self, offset: u64) -> io::Result<()> {
        let cluster = offset >> CLUSTER_BITS;
        if offset != cluster << CLUSTER_BITS {
            return Err(invalid("a cluster is not where clusters begin"));
        }
        let (word, bit) = (usize::try_from(cluster / 64).unwrap_or(usize::MAX), 1 << (cluster % 64));
        match self.0.get_mut(word) {
            Some(word) if *word & bit == 0 => *word |= bit,
            Some(_) => return Err(invalid("a cluster has two places")),
            None => return Err(invalid("a cluster is beyond its end")),
        }
        Ok(())
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

/// Blocks of zeros become holes: what is written takes no more than what was read.
fn write(to: &File, piece: &[u8], at: u64) -> io::Result<()> {
    let zero = |from: usize| piece[from..piece.len().min(from + HOLE)].iter().all(|byte| *byte == 0);
    let mut from = 0;
    while from < piece.len() {
        let hole = zero(from);
        let mut end = piece.len().min(from + HOLE);
        while end < piece.len() && zero(end) == hole {
            end = piece.len().min(end + HOLE);
        }
        let place = at + from as u64;
        if hole {
            sparse::zero(to, place, (end - from) as u64)?;
        } else {
            to.write_all_at(&piece[from..end], place)?;
        }
        from = end;
    }
    Ok(())
}

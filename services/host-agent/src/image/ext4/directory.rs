//! Directories: one block of entries, or a tree by the names' hashes (htree) where they are more.

use mkext4::{
    csum,
    dirhash::{Signedness, half_md4},
    spec::{
        dirent::rec_len_for,
        file_type,
        htree::{NODE_COUNT_OFFSET, ROOT_COUNT_OFFSET, node_limit, root_limit},
        iflags,
    },
};

use super::{
    BLOCK, Error, Writer,
    contents::{Placed, Run, add},
};

/// The entry at a block's end that holds its checksum.
const TAIL: usize = 12;
const USABLE: usize = BLOCK - TAIL;
/// Above so many directories in it, a directory says that it has one link: it does not count.
const LINKS_MAX: u32 = 65_000;

/// A name in a directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name {
    pub inode: u32,
    /// [`file_type`]'s byte.
    pub kind: u8,
    /// Where the name itself is.
    pub place: u32,
}

/// Reads a name from its place.
pub(crate) type Read<'a> = dyn FnMut(u32, &mut [u8; 255]) -> std::io::Result<usize> + 'a;

/// A directory's blocks while they are written.
struct Blocks<'a> {
    writer: &'a mut Writer,
    seed: u32,
    runs: Vec<Run>,
    count: u32,
}

impl Blocks<'_> {
    /// The next block's place.
    fn place(&mut self) -> Result<u64, Error> {
        let (start, _) = self.writer.image.space.take(1)?;
        let start32 = u32::try_from(start).map_err(|_| Error::Refused("a directory is too large".to_owned()))?;
        add(&mut self.runs, self.count, start32);
        self.count += 1;
        Ok(start)
    }

    /// Writes a block of entries, its last stretched to the checksum.
    fn leaf(&mut self, bytes: &mut [u8; BLOCK], end: usize, last: usize) -> Result<(), Error> {
        let place = self.place()?;
        self.leaf_at(place, bytes, end, last)
    }

    fn leaf_at(&mut self, place: u64, bytes: &mut [u8; BLOCK], end: usize, last: usize) -> Result<(), Error> {
        let stretched = (USABLE - last) as u16;
        debug_assert!(end <= USABLE);
        bytes[last + 4..last + 6].copy_from_slice(&stretched.to_le_bytes());
        bytes[USABLE + 4] = TAIL as u8;
        bytes[USABLE + 7] = 0xde;
        let sum = csum::dirent_block(self.seed, bytes);
        bytes[BLOCK - 4..].copy_from_slice(&sum.to_le_bytes());
        self.writer.image.put(place, bytes)
    }

    /// Writes a block of the tree.
    fn node(
        &mut self,
        place: u64,
        bytes: &mut [u8; BLOCK],
        at: usize,
        limit: u16,
        entries: &[(u32, u32)],
    ) -> Result<(), Error> {
        bytes[at..at + 2].copy_from_slice(&limit.to_le_bytes());
        bytes[at + 2..at + 4].copy_from_slice(&(entries.len() as u16).to_le_bytes());
        for (n, (hash, block)) in entries.iter().enumerate() {
            let at = at + 8 * n;
            // The first entry's hash is the lowest there is; limit and count are in its place.
            if n > 0 {
                bytes[at..at + 4].copy_from_slice(&hash.to_le_bytes());
            }
            bytes[at + 4..at + 8].copy_from_slice(&block.to_le_bytes());
        }
        let sum = csum::dx_block(self.seed, bytes, at, entries.len() as u16, limit);
        let tail = at + usize::from(limit) * 8 + 4;
        bytes[tail..tail + 4].copy_from_slice(&sum.to_le_bytes());
        self.writer.image.put(place, bytes)
    }
}

/// Adds an entry to a block; gives where the next one goes.
fn entry(bytes: &mut [u8; BLOCK], at: usize, inode: u32, kind: u8, name: &[u8]) -> usize {
    let length = rec_len_for(name.len());
    bytes[at..at + 4].copy_from_slice(&inode.to_le_bytes());
    bytes[at + 4..at + 6].copy_from_slice(&(length as u16).to_le_bytes());
    bytes[at + 6] = name.len() as u8;
    bytes[at + 7] = kind;
    bytes[at + 8..at + 8 + name.len()].copy_from_slice(name);
    at + length
}

impl Writer {
    /// Writes a directory's names; gives the links its inode has. `spare` blocks without names are added to it.
    pub(crate) fn directory(
        &mut self,
        number: u32,
        parent: u32,
        names: &[Name],
        spare: u32,
        read: &mut Read<'_>,
    ) -> Result<u16, Error> {
        let seed = self.inode_seed(number);
        let mut buffer = [0; 255];
        let mut bytes = 12 + 12;
        for name in names {
            bytes += rec_len_for(read(name.place, &mut buffer)?);
            if bytes > USABLE {
                break;
            }
        }
        let mut blocks = Blocks { writer: self, seed, runs: Vec::new(), count: 0 };
        let indexed = bytes > USABLE;
        if indexed {
            blocks.tree(number, parent, names, read)?;
        } else {
            let mut block = [0; BLOCK];
            let mut last = entry(&mut block, 0, number, file_type::DIR, b".");
            let mut end = entry(&mut block, last, parent, file_type::DIR, b"..");
            for name in names {
                let length = read(name.place, &mut buffer)?;
                last = end;
                end = entry(&mut block, end, name.inode, name.kind, &buffer[..length]);
            }
            blocks.leaf(&mut block, end, last)?;
        }
        for _ in 0..if indexed { 0 } else { spare } {
            blocks.leaf(&mut [0; BLOCK], 0, 0)?;
        }
        let placed = Placed { size: u64::from(blocks.count) * BLOCK as u64, runs: blocks.runs };
        let mut inode = self.load(number)?;
        self.extents(&mut inode, &placed, seed)?;
        if indexed {
            inode.flags |= iflags::INDEX;
        }
        self.store(number, &inode)?;
        let below = names.iter().filter(|name| name.kind == file_type::DIR).count() as u32;
        Ok(if below + 2 > LINKS_MAX { 1 } else { (below + 2) as u16 })
    }
}

impl Blocks<'_> {
    /// Writes names as a tree of one or two levels: the root, then the leaves, then the nodes between them.
    fn tree(&mut self, number: u32, parent: u32, names: &[Name], read: &mut Read<'_>) -> Result<(), Error> {
        let mut buffer = [0; 255];
        let mut order = Vec::with_capacity(names.len());
        for (n, name) in names.iter().enumerate() {
            let length = read(name.place, &mut buffer)?;
            let (hash, _) = half_md4(&self.writer.hash_seed, Signedness::Signed, &buffer[..length]);
            order.push((hash, n as u32));
        }
        order.sort_unstable();
        let root = self.place()?;
        let leaves = self.leaves(names, &order, read)?;
        let (limit, inner) = (usize::from(root_limit(BLOCK)), usize::from(node_limit(BLOCK)));
        let (levels, top) = if leaves.len() <= limit {
            (0, leaves)
        } else {
            let mut top = Vec::new();
            for entries in leaves.chunks(inner) {
                let (logical, place) = (self.count, self.place()?);
                let mut block = [0; BLOCK];
                // To those who know no trees it is one empty entry.
                block[4..6].copy_from_slice(&(BLOCK as u16).to_le_bytes());
                self.node(place, &mut block, NODE_COUNT_OFFSET, inner as u16, entries)?;
                top.push((entries[0].0, logical));
            }
            (1, top)
        };
        if top.len() > limit {
            return Err(Error::Refused("a directory has more names than ext4's trees of two levels hold".to_owned()));
        }
        let mut block = [0; BLOCK];
        let at = entry(&mut block, 0, number, file_type::DIR, b".");
        entry(&mut block, at, parent, file_type::DIR, b"..");
        block[at + 4..at + 6].copy_from_slice(&((BLOCK - at) as u16).to_le_bytes());
        // Half MD4, eight bytes of this, and the levels.
        (block[28], block[29], block[30]) = (1, 8, levels);
        self.node(root, &mut block, ROOT_COUNT_OFFSET, limit as u16, &top)
    }

    /// Writes the names in the order of their hashes; gives each leaf's lowest hash and number.
    fn leaves(&mut self, names: &[Name], order: &[(u32, u32)], read: &mut Read<'_>) -> Result<Vec<(u32, u32)>, Error> {
        let (mut leaves, mut buffer, mut block) = (Vec::new(), [0; 255], [0; BLOCK]);
        let (mut end, mut last, mut before) = (0, 0, None);
        for (hash, n) in order {
            let name = &names[*n as usize];
            let length = read(name.place, &mut buffer)?;
            if end > 0 && end + rec_len_for(length) > USABLE {
                self.leaf(&mut block, end, last)?;
                (block, end) = ([0; BLOCK], 0);
            }
            if end == 0 {
                // The lowest bit says that names of this hash began in the leaf before.
                let continued = u32::from(before == Some(*hash));
                leaves.push((*hash | continued, self.count));
            }
            last = end;
            end = entry(&mut block, end, name.inode, name.kind, &buffer[..length]);
            before = Some(*hash);
        }
        self.leaf(&mut block, end, last)?;
        Ok(leaves)
    }
}

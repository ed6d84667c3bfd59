//! A regular file's contents on their way to their final blocks, and the extents that say where they are.

use mkext4::{
    csum,
    spec::{Extent, ExtentHeader, ExtentIdx},
};

use super::{BLOCK, Error, image::Image};

/// So many blocks of zeros in a row become a hole of the file; fewer are written, so that files have few extents.
const HOLE: u64 = 16;
/// The most blocks of one extent.
pub(super) const EXTENT_MAX: u32 = 32768;
/// Extents in an inode, and in a block.
const IN_INODE: usize = 4;
const IN_BLOCK: usize = (BLOCK - ExtentHeader::LEN - 4) / ExtentHeader::ENTRY_LEN;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Blocks of a file in a row, on the disk and in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub logical: u32,
    pub start: u32,
    pub count: u32,
}

/// What a file has so far.
#[derive(Default)]
pub(crate) struct Contents {
    /// Less than a block that waits for more.
    partial: Vec<u8>,
    /// Blocks behind the file's beginning, those of zeros that wait included.
    blocks: u64,
    zeros: u64,
    runs: Vec<Run>,
    size: u64,
}

impl Contents {
    pub(super) fn data(&mut self, image: &mut Image, mut bytes: &[u8]) -> Result<(), Error> {
        self.size += bytes.len() as u64;
        if !self.partial.is_empty() {
            let count = bytes.len().min(BLOCK - self.partial.len());
            self.partial.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if self.partial.len() < BLOCK {
                return Ok(());
            }
            self.whole_partial(image)?;
        }
        let blocks = bytes.chunks_exact(BLOCK);
        self.partial.extend_from_slice(blocks.remainder());
        for block in blocks {
            self.block(image, block)?;
        }
        Ok(())
    }

    pub(super) fn hole(&mut self, image: &mut Image, mut length: u64) -> Result<(), Error> {
        if !self.partial.is_empty() {
            let count = length.min((BLOCK - self.partial.len()) as u64);
            self.data(image, &ZEROS[..count as usize])?;
            length -= count;
        }
        self.size += length;
        let count = length / BLOCK as u64;
        (self.zeros, self.blocks) = (self.zeros + count, self.blocks + count);
        self.partial.resize(self.partial.len() + (length % BLOCK as u64) as usize, 0);
        Ok(())
    }

    fn whole_partial(&mut self, image: &mut Image) -> Result<(), Error> {
        let partial = std::mem::take(&mut self.partial);
        self.block(image, &partial)?;
        self.partial = partial;
        self.partial.clear();
        Ok(())
    }

    fn block(&mut self, image: &mut Image, bytes: &[u8]) -> Result<(), Error> {
        let zero = bytes == &ZEROS[..bytes.len()];
        self.blocks += 1;
        if zero {
            self.zeros += 1;
            return Ok(());
        }
        let zeros = std::mem::take(&mut self.zeros);
        if zeros < HOLE {
            for n in 0..zeros {
                self.place(image, self.blocks - 1 - zeros + n, &ZEROS)?;
            }
        }
        self.place(image, self.blocks - 1, bytes)
    }

    fn place(&mut self, image: &mut Image, logical: u64, bytes: &[u8]) -> Result<(), Error> {
        let too_large = || Error::Refused("a file is larger than ext4 takes (16 TiB)".to_owned());
        let logical = u32::try_from(logical).map_err(|_| too_large())?;
        let (start, _) = image.space.take(1)?;
        image.put(start, bytes)?;
        let start = u32::try_from(start).map_err(|_| too_large())?;
        add(&mut self.runs, logical, start);
        Ok(())
    }

    /// The file is whole.
    pub(super) fn end(mut self, image: &mut Image) -> Result<Placed, Error> {
        if !self.partial.is_empty() {
            self.whole_partial(image)?;
        }
        if self.blocks > u64::from(u32::MAX) {
            return Err(Error::Refused("a file is larger than ext4 takes (16 TiB)".to_owned()));
        }
        Ok(Placed { size: self.size, runs: self.runs })
    }
}

/// Adds a block to what is there.
pub(super) fn add(runs: &mut Vec<Run>, logical: u32, start: u32) {
    match runs.last_mut() {
        Some(last)
            if last.logical + last.count == logical && last.start + last.count == start && last.count < EXTENT_MAX =>
        {
            last.count += 1;
        }
        _ => runs.push(Run { logical, start, count: 1 }),
    }
}

/// Contents at their places.
pub(super) struct Placed {
    pub size: u64,
    pub runs: Vec<Run>,
}

impl Placed {
    /// Writes the extents; gives the inode's part of them and the count of all blocks.
    pub(super) fn extents(&self, image: &mut Image, seed: u32) -> Result<([u8; 60], u64), Error> {
        let mut blocks: u64 = self.runs.iter().map(|run| u64::from(run.count)).sum();
        let mut level: Vec<(u32, [u8; 12])> = Vec::new();
        let (mut depth, mut count) = (0, self.runs.len());
        if count <= IN_INODE {
            level.extend(self.runs.iter().map(entry));
        } else {
            for leaf in self.runs.chunks(IN_BLOCK) {
                let entries: Vec<_> = leaf.iter().map(entry).collect();
                level.push(node(image, seed, depth, &entries)?);
            }
            (depth, blocks) = (1, blocks + level.len() as u64);
        }
        count = level.len();
        while count > IN_INODE {
            let mut above = Vec::new();
            for entries in level.chunks(IN_BLOCK) {
                above.push(node(image, seed, depth, entries)?);
            }
            (level, depth, blocks) = (above, depth + 1, blocks + count.div_ceil(IN_BLOCK) as u64);
            count = level.len();
        }
        let mut root = [0; 60];
        fill(&mut root, depth, IN_INODE, &level);
        Ok((root, blocks))
    }
}

fn entry(run: &Run) -> (u32, [u8; 12]) {
    let mut bytes = [0; 12];
    Extent { logical: run.logical, raw_len: run.count as u16, start: u64::from(run.start) }.encode(&mut bytes);
    (run.logical, bytes)
}

fn fill(into: &mut [u8], depth: u16, max: usize, entries: &[(u32, [u8; 12])]) {
    ExtentHeader { entries: entries.len() as u16, max: max as u16, depth, generation: 0 }.encode(into);
    for (place, (_, entry)) in into[ExtentHeader::LEN..].chunks_mut(ExtentHeader::ENTRY_LEN).zip(entries) {
        place.copy_from_slice(entry);
    }
}

/// Writes a node of its own block; gives the entry that leads to it.
fn node(image: &mut Image, seed: u32, depth: u16, entries: &[(u32, [u8; 12])]) -> Result<(u32, [u8; 12]), Error> {
    let (block, _) = image.space.take(1)?;
    let mut bytes = [0; BLOCK];
    fill(&mut bytes, depth, IN_BLOCK, entries);
    let sum = csum::extent_block(seed, &bytes);
    bytes[BLOCK - 4..].copy_from_slice(&sum.to_le_bytes());
    image.put(block, &bytes)?;
    let (logical, mut entry) = (entries[0].0, [0; 12]);
    ExtentIdx { logical, leaf: block }.encode(&mut entry);
    Ok((logical, entry))
}

/// Calls for each stretch of blocks an inode's extents lead to, its nodes included.
pub(super) fn visit(image: &mut Image, root: &[u8], mark: &mut dyn FnMut(u64, u64)) -> Result<(), Error> {
    let broken = |error: mkext4::Error| Error::Io(std::io::Error::other(error.to_string()));
    let header = ExtentHeader::decode(root).map_err(broken)?;
    for n in 0..usize::from(header.entries) {
        let entry = mkext4::spec::extent::entry(root, n);
        if header.depth == 0 {
            let extent = Extent::decode(entry);
            mark(extent.start, u64::from(extent.len()));
        } else {
            let child = ExtentIdx::decode(entry).leaf;
            mark(child, 1);
            let node = image.get(child)?;
            visit(image, &node, mark)?;
        }
    }
    Ok(())
}

//! Writes an ext4 filesystem in one pass, without mounting anything: contents go to their final blocks as they come,
//! inodes wait in a spool, and names, tables, bitmaps and superblocks are written when all is known.
//!
//! The encodings of structures and checksums are the crate mkext4's; its own builder wants every size before the first
//! byte and has neither names that are bytes nor room to grow. Layout: superblocks with [`space::TABLE`] blocks for
//! descriptors where `sparse_super` puts them; contents one after the other; then directories, the journal and the
//! groups' bitmaps and inode tables, which `flex_bg` lets stand anywhere; then free space.

mod contents;
mod directory;
mod finish;
mod image;
mod inode;
mod space;
pub(crate) mod spool;
mod superblock;
mod xattr;

use std::{io, path::Path};

use mkext4::csum;
use tokio_util::sync::CancellationToken;

pub(crate) use contents::Contents;
pub(crate) use directory::Name;
pub(crate) use inode::{Kind, Meta};
pub(crate) use mkext4::spec::file_type;

use image::Image;
use spool::Spool;

/// A block's bytes.
pub(crate) const BLOCK: usize = mkext4::spec::BLOCK_SIZE;
/// The root's inode.
pub(crate) const ROOT: u32 = mkext4::spec::ROOT_INO;
/// The inode of `lost+found`, the first that is free to use.
pub(crate) const LOST_AND_FOUND: u32 = mkext4::spec::FIRST_INO;
/// Blocks `lost+found` has ready, so that a repair need not look for some.
pub(crate) const LOST_AND_FOUND_SPARE: u32 = 3;
/// The most links of a file.
pub(crate) const LINKS_MAX: u16 = 65_000;

/// Why a filesystem cannot be written.
#[derive(Debug)]
pub(crate) enum Error {
    /// The host's disk fails or is full.
    Io(io::Error),
    /// What is asked for is nothing ext4 can hold.
    Refused(String),
    /// It is no longer wanted.
    Cancelled,
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A filesystem being written.
pub(crate) struct Writer {
    image: Image,
    inodes: Spool,
    last_inode: u32,
    uuid: [u8; 16],
    /// Of all checksums.
    seed: u32,
    hash_seed: [u32; 4],
    now: i64,
}

impl Writer {
    /// Begins a filesystem at a path; what must wait is spooled to the directory it is in.
    pub(crate) fn create(path: &Path, uuid: [u8; 16], now: i64, cancel: CancellationToken) -> Result<Self, Error> {
        let dir = path.parent().ok_or_else(|| io::Error::other("the image has no directory"))?;
        let mut writer = Self {
            image: Image::create(path, cancel)?,
            inodes: Spool::new(dir)?,
            last_inode: 0,
            uuid,
            seed: csum::fs_seed(&uuid),
            hash_seed: mkext4::dirhash::seed_from_uuid(uuid::Uuid::new_v4().as_bytes()),
            now,
        };
        let plain = |mode| Meta { mode, uid: 0, gid: 0, mtime: (now, 0) };
        for number in 1..=LOST_AND_FOUND {
            match number {
                ROOT => drop(writer.add(&plain(0o755), &[], Kind::Directory)?),
                LOST_AND_FOUND => drop(writer.add(&plain(0o700), &[], Kind::Directory)?),
                // Reserved; the journal's and the one for growing are described at the end.
                _ => {
                    writer.store(number, &mkext4::spec::Inode::default())?;
                    writer.last_inode = number;
                }
            }
        }
        Ok(writer)
    }

    /// Adds bytes to a file's contents.
    pub(crate) fn data(&mut self, contents: &mut Contents, bytes: &[u8]) -> Result<(), Error> {
        contents.data(&mut self.image, bytes)
    }

    /// Adds zeros that need no blocks.
    pub(crate) fn hole(&mut self, contents: &mut Contents, length: u64) -> Result<(), Error> {
        contents.hole(&mut self.image, length)
    }

    /// The highest inode there is.
    pub(crate) fn last_inode(&self) -> u32 {
        self.last_inode
    }

    /// Of an inode's checksums.
    fn inode_seed(&self, number: u32) -> u32 {
        csum::inode_seed(self.seed, number, 0)
    }
}

#[cfg(test)]
mod tests;

//! Inodes: their bytes wait in a spool until all is known of them, then go to their groups' tables.

use mkext4::spec::{Inode, iflags};

use super::{
    BLOCK, Error, Writer,
    contents::Placed,
    xattr::{self, Holder},
};

/// What every inode says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
}

/// What kind of inode it is, with what is special of it.
pub(crate) enum Kind<'a> {
    File(super::Contents),
    Directory,
    Symlink(&'a [u8]),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// An inode's bytes.
pub(super) const SIZE: usize = mkext4::spec::INODE_SIZE;
/// The longest symlink target that stays in its inode.
const FAST: usize = 59;

/// Type bits of a mode.
const FIFO: u16 = 0o010_000;
const CHARACTER: u16 = 0o020_000;
pub(super) const DIRECTORY: u16 = 0o040_000;
const BLOCK_DEVICE: u16 = 0o060_000;
pub(super) const FILE: u16 = 0o100_000;
const SYMLINK: u16 = 0o120_000;

/// What ext4's 34 bits of seconds hold.
const TIMES: std::ops::RangeInclusive<i64> = -(1 << 31)..=(1 << 34) - (1 << 31) - 1;

impl Writer {
    /// Adds an inode; gives its number.
    pub(crate) fn add(&mut self, meta: &Meta, xattrs: &[(Vec<u8>, Vec<u8>)], kind: Kind<'_>) -> Result<u32, Error> {
        let number = self.last_inode + 1;
        let mut inode = self.describe(meta, xattrs, kind_holder(&kind))?;
        let seed = self.inode_seed(number);
        match kind {
            Kind::File(contents) => {
                inode.mode |= FILE;
                let placed = contents.end(&mut self.image)?;
                self.extents(&mut inode, &placed, seed)?;
            }
            Kind::Directory => inode.mode |= DIRECTORY,
            Kind::Symlink(target) => {
                inode.mode |= SYMLINK;
                if target.len() <= FAST {
                    inode.size = target.len() as u64;
                    inode.block[..target.len()].copy_from_slice(target);
                } else {
                    let mut contents = super::Contents::default();
                    contents.data(&mut self.image, target)?;
                    let placed = contents.end(&mut self.image)?;
                    self.extents(&mut inode, &placed, seed)?;
                }
            }
            Kind::Character(major, minor) => {
                inode.mode |= CHARACTER;
                device(&mut inode.block, major, minor)?;
            }
            Kind::Block(major, minor) => {
                inode.mode |= BLOCK_DEVICE;
                device(&mut inode.block, major, minor)?;
            }
            Kind::Fifo => inode.mode |= FIFO,
        }
        self.store(number, &inode)?;
        self.last_inode = number;
        Ok(number)
    }

    /// Describes a directory anew, its names left alone.
    pub(crate) fn redescribe(&mut self, number: u32, meta: &Meta, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<(), Error> {
        let mut inode = self.describe(meta, xattrs, Holder::Directory)?;
        inode.mode |= DIRECTORY;
        self.store(number, &inode)
    }

    /// Where a symlink leads.
    pub(crate) fn target(&mut self, number: u32) -> Result<Vec<u8>, Error> {
        let inode = self.load(number)?;
        let size = usize::try_from(inode.size).unwrap_or(0).min(BLOCK);
        if size <= FAST {
            return Ok(inode.block[..size].to_vec());
        }
        let mut place = 0;
        super::contents::visit(&mut self.image, &inode.block, &mut |start, _| place = start)?;
        Ok(self.image.get(place)?[..size].to_vec())
    }

    fn describe(&mut self, meta: &Meta, xattrs: &[(Vec<u8>, Vec<u8>)], holder: Holder) -> Result<Inode, Error> {
        let (inside, block) = xattr::divide(xattr::attributes(xattrs, holder)?)?;
        let seconds = meta.mtime.0.clamp(*TIMES.start(), *TIMES.end());
        let (mtime, mtime_extra) = Inode::encode_timestamp(seconds, meta.mtime.1);
        let (now, now_extra) = Inode::encode_timestamp(self.now, 0);
        let mut inode = Inode {
            mode: meta.mode & 0o7777,
            uid: meta.uid,
            gid: meta.gid,
            mtime,
            mtime_extra,
            atime: mtime,
            atime_extra: mtime_extra,
            ctime: now,
            ctime_extra: now_extra,
            crtime: now,
            crtime_extra: now_extra,
            extra_isize: 32,
            ibody: inside,
            ..Inode::default()
        };
        if !block.is_empty() {
            let (place, _) = self.image.space.take(1)?;
            self.image.put(place, &xattr::block(&block, self.seed, place))?;
            (inode.file_acl, inode.blocks) = (place, BLOCK as u64 / 512);
        }
        Ok(inode)
    }

    /// Gives an inode its contents.
    pub(super) fn extents(&mut self, inode: &mut Inode, placed: &Placed, seed: u32) -> Result<(), Error> {
        let (root, blocks) = placed.extents(&mut self.image, seed)?;
        inode.block = root;
        inode.flags |= iflags::EXTENTS;
        inode.size = placed.size;
        inode.blocks += blocks * BLOCK as u64 / 512;
        Ok(())
    }

    /// Keeps an inode's bytes, whose links and checksum are still to come.
    pub(super) fn store(&mut self, number: u32, inode: &Inode) -> Result<(), Error> {
        let mut bytes = [0; SIZE];
        inode.encode(&mut bytes);
        let at = u64::from(number - 1) * SIZE as u64;
        if at == self.inodes.length() {
            self.inodes.push(&bytes)?;
        } else {
            self.inodes.write_at(at, &bytes)?;
        }
        Ok(())
    }

    pub(super) fn load(&self, number: u32) -> Result<Inode, Error> {
        let mut bytes = [0; SIZE];
        self.inodes.read_at(u64::from(number - 1) * SIZE as u64, &mut bytes)?;
        Inode::decode(&bytes).map_err(|error| Error::Io(std::io::Error::other(error.to_string())))
    }
}

fn kind_holder(kind: &Kind<'_>) -> Holder {
    match kind {
        Kind::File(_) => Holder::File,
        Kind::Directory => Holder::Directory,
        _ => Holder::Other,
    }
}

/// A device's number: the old way where it fits, as the kernel does.
fn device(block: &mut [u8; 60], major: u32, minor: u32) -> Result<(), Error> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err(Error::Refused(format!("the device {major}:{minor} has a number no system takes")));
    }
    if major < 256 && minor < 256 {
        block[..4].copy_from_slice(&((major << 8) | minor).to_le_bytes());
    } else {
        block[4..8].copy_from_slice(&((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)).to_le_bytes());
    }
    Ok(())
}

//! Extended attributes: as many as fit behind an inode's fields, the rest in a block of their own.

use mkext4::{
    csum,
    spec::{INODE_SIZE, XATTR_MAGIC},
};

use super::{BLOCK, Error};

/// Behind an inode's fields (128 bytes and 32 more).
const IN_INODE: usize = INODE_SIZE - 160;
/// A block's header.
const HEADER: usize = 32;

/// The indexes that stand for the beginnings of names.
const ACCESS_ACL: u8 = 2;
const DEFAULT_ACL: u8 = 3;

/// One attribute as ext4 has it; they are sorted by this order.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Attribute {
    index: u8,
    length: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Attribute {
    fn entry(&self) -> usize {
        16 + self.name.len().next_multiple_of(4)
    }

    fn size(&self) -> usize {
        self.entry() + self.value.len().next_multiple_of(4)
    }
}

/// What kinds of attributes a file may have: users' own only on files and directories, default ACLs on directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    Directory,
    File,
    Other,
}

/// Reads attributes as archives have them. Those of namespaces Linux does not know are left out, as they are by the
/// tools that unpack images on Linux.
pub(super) fn attributes(xattrs: &[(Vec<u8>, Vec<u8>)], holder: Holder) -> Result<Vec<Attribute>, Error> {
    let mut all = Vec::new();
    for (name, value) in xattrs {
        let prefixed = |prefix: &[u8]| name.strip_prefix(prefix).map(<[u8]>::to_vec);
        let (index, short, value) = match name.as_slice() {
            b"system.posix_acl_access" => (ACCESS_ACL, Vec::new(), acl(value)?),
            b"system.posix_acl_default" if holder == Holder::Directory => (DEFAULT_ACL, Vec::new(), acl(value)?),
            _ => {
                let known = prefixed(b"user.").filter(|_| holder != Holder::Other).map(|name| (1, name));
                let known = known.or_else(|| prefixed(b"trusted.").map(|name| (4, name)));
                match known.or_else(|| prefixed(b"security.").map(|name| (6, name))) {
                    Some((index, short)) if !short.is_empty() && name.len() <= 255 && !name.contains(&0) => {
                        (index, short, value.clone())
                    }
                    Some(_) => {
                        return Err(Error::Refused("an extended attribute has a name no filesystem takes".to_owned()));
                    }
                    None => continue,
                }
            }
        };
        all.push(Attribute { index, length: short.len(), name: short, value });
    }
    all.sort();
    Ok(all)
}

/// An access control list as the kernel passes it, as ext4 keeps it: ids only where they say something.
fn acl(value: &[u8]) -> Result<Vec<u8>, Error> {
    let wrong = || Error::Refused("an access control list cannot be read".to_owned());
    let (version, entries) = value.split_at_checked(4).ok_or_else(wrong)?;
    if version != 2u32.to_le_bytes() || entries.len() % 8 != 0 {
        return Err(wrong());
    }
    let mut kept = 1u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        match u16::from_le_bytes([entry[0], entry[1]]) {
            // A named user or group.
            0x02 | 0x08 => kept.extend_from_slice(entry),
            0x01 | 0x04 | 0x10 | 0x20 => kept.extend_from_slice(&entry[..4]),
            _ => return Err(wrong()),
        }
    }
    Ok(kept)
}

/// Divides sorted attributes: those behind the inode, as its bytes, and those for a block.
pub(super) fn divide(mut attributes: Vec<Attribute>) -> Result<(Vec<u8>, Vec<Attribute>), Error> {
    let usable = IN_INODE - 4;
    let mut used = 4;
    let fitting = attributes.iter().take_while(|attribute| {
        used += attribute.size();
        used <= usable
    });
    let count = fitting.count();
    let block = attributes.split_off(count);
    if HEADER + 4 + block.iter().map(Attribute::size).sum::<usize>() > BLOCK {
        return Err(Error::Refused("its extended attributes need more than the 4 KiB ext4 has for them".to_owned()));
    }
    let mut bytes = Vec::new();
    if !attributes.is_empty() {
        bytes.extend(XATTR_MAGIC.to_le_bytes());
        bytes.resize(IN_INODE, 0);
        render(&mut bytes[4..], &attributes, 0);
    }
    Ok((bytes, block))
}

/// The block of attributes that is at a place.
pub(super) fn block(attributes: &[Attribute], seed: u32, place: u64) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(0, XATTR_MAGIC);
    // One inode refers to it, and it is one block.
    put(4, 1);
    put(8, 1);
    let hashes = render(&mut bytes[HEADER..], attributes, HEADER);
    bytes[12..16].copy_from_slice(&csum::xattr_block_hash(hashes).to_le_bytes());
    let sum = csum::xattr_block(seed, place, &bytes);
    bytes[16..20].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Writes entries from the front and values from the back; offsets count from `base` before the region, which a block
/// has and an inode has not. Gives the entries' hashes, which only blocks have.
fn render(region: &mut [u8], attributes: &[Attribute], base: usize) -> Vec<u32> {
    let (mut entry, mut end, mut hashes) = (0, region.len(), Vec::new());
    for attribute in attributes {
        end -= attribute.value.len().next_multiple_of(4);
        region[end..end + attribute.value.len()].copy_from_slice(&attribute.value);
        let hash = if base == 0 { 0 } else { csum::xattr_entry_hash(&attribute.name, &attribute.value) };
        region[entry] = attribute.name.len() as u8;
        region[entry + 1] = attribute.index;
        region[entry + 2..entry + 4].copy_from_slice(&((base + end) as u16).to_le_bytes());
        region[entry + 8..entry + 12].copy_from_slice(&(attribute.value.len() as u32).to_le_bytes());
        region[entry + 12..entry + 16].copy_from_slice(&hash.to_le_bytes());
        region[entry + 16..entry + 16 + attribute.name.len()].copy_from_slice(&attribute.name);
        entry += attribute.entry();
        hashes.push(hash);
    }
    hashes
}

//! Writes a merged tree as an ext4 image, without mounting anything: first every name and size is declared, then contents
//! stream from the spools.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use contract::ApiError;
use mkext4::{FsBuilder, InodeCount, InodeHandle, Meta, Options, SpecialKind, sink::FileSink};
use tokio_util::sync::CancellationToken;

use super::{
    progress::Reporter,
    storage_error,
    tree::{self, Inode, Kind, Tree},
};

const BLOCK: u64 = 4096;
const INODE: u64 = 256;
/// Room beside contents: journal, group descriptors, bitmaps, and space to work in before the disk is grown.
const SLACK: u64 = 64 << 20;
/// Free inodes for what a VM makes before its disk is grown, and one for each so many bytes.
const SPARE_INODES: u64 = 4096;
const BYTES_AN_INODE: u64 = 16384;

/// What the tree needs.
#[derive(Default)]
struct Size {
    inodes: u64,
    bytes: u64,
}

/// Writes the image; gives its size in bytes.
pub(super) fn write(
    tree: &Tree,
    spools: &[PathBuf],
    path: &Path,
    uuid: uuid::Uuid,
    progress: &Reporter,
    cancel: &CancellationToken,
) -> Result<u64, ApiError> {
    let mut needed = Size::default();
    let mut seen = HashMap::new();
    measure(tree, tree::ROOT, &mut seen, &mut needed);
    let mut size = (needed.bytes + needed.bytes / 8 + needed.inodes * INODE + SLACK).next_multiple_of(1 << 20);
    let inodes = needed.inodes + SPARE_INODES.max(size / BYTES_AN_INODE);
    size += inodes * INODE;
    let mut options = Options::new(size.next_multiple_of(BLOCK), *uuid.as_bytes(), now());
    options.inodes = InodeCount::Exact(u32::try_from(inodes).unwrap_or(u32::MAX));
    options.reserved_percent = 0;
    let mut builder = FsBuilder::new(options).map_err(|error| failed(path, &error))?;
    let mut files = Vec::new();
    declare(tree, &mut builder, &mut files).map_err(|error| failed(path, &error))?;
    let layout = builder.seal().map_err(|error| failed(path, &error))?;
    let mut sink = FileSink::create(path, layout.image_len()).map_err(|error| storage_error(path, &error))?;
    let mut writer = layout.writer(&mut sink).map_err(|error| failed(path, &error))?;
    let mut open = Vec::new();
    for spool in spools {
        open.push(File::open(spool).map_err(|error| storage_error(spool, &error))?);
    }
    progress.phase("writing", needed.bytes);
    for (handle, layer, offset, length) in files {
        if cancel.is_cancelled() {
            return Err(ApiError::cancelled("the staging was discarded"));
        }
        let mut spool = &open[layer];
        spool.seek(SeekFrom::Start(offset)).map_err(|error| storage_error(path, &error))?;
        writer.fill(handle, &mut spool.take(length)).map_err(|error| failed(path, &error))?;
        progress.add(length);
    }
    writer.finish().map_err(|error| failed(path, &error))?;
    let file = sink.into_file();
    file.sync_all().map_err(|error| storage_error(path, &error))?;
    Ok(file.metadata().map_err(|error| storage_error(path, &error))?.len())
}

fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

fn failed(path: &Path, error: &mkext4::Error) -> ApiError {
    match error {
        mkext4::Error::Io(error) => storage_error(path, error),
        other => ApiError::invalid_argument(format!("the image's files do not fit an ext4 filesystem: {other}")),
    }
}

fn measure(tree: &Tree, index: usize, seen: &mut HashMap<usize, ()>, size: &mut Size) {
    if seen.insert(index, ()).is_some() {
        return;
    }
    let inode = tree.inode(index);
    size.inodes += 1;
    // An attribute block at the most.
    size.bytes += if inode.xattrs.is_empty() { 0 } else { BLOCK };
    size.bytes += match &inode.kind {
        Kind::File { length, .. } => length.next_multiple_of(BLOCK),
        Kind::Symlink(target) => target.len() as u64 / 60 * BLOCK,
        Kind::Directory(children) => {
            let names: u64 = children.keys().map(|name| 8 + name.len() as u64 + 4).sum();
            // Indexed blocks are filled to half at the least.
            (2 * names).next_multiple_of(BLOCK).max(BLOCK)
        }
        Kind::Character(..) | Kind::Block(..) | Kind::Fifo => 0,
    };
    if let Kind::Directory(children) = &inode.kind {
        for child in children.values() {
            measure(tree, *child, seen, size);
        }
    }
}

type Fill = (InodeHandle, usize, u64, u64);

/// Declares every name. Directories are kept on a list of their own, so that a deep tree needs no deep stack.
fn declare(tree: &Tree, builder: &mut FsBuilder, files: &mut Vec<Fill>) -> mkext4::Result<()> {
    builder.set_meta(mkext4::ROOT, meta(tree.inode(tree::ROOT)))?;
    attributes(builder, mkext4::ROOT, tree.inode(tree::ROOT))?;
    let mut made: HashMap<usize, InodeHandle> = HashMap::new();
    let mut directories = vec![(tree::ROOT, mkext4::ROOT)];
    while let Some((index, parent)) = directories.pop() {
        let Kind::Directory(children) = &tree.inode(index).kind else { continue };
        for (name, child) in children {
            // Every ext4 filesystem has one of its own.
            if index == tree::ROOT && name == "lost+found" {
                continue;
            }
            if let Some(handle) = made.get(child) {
                builder.hardlink(parent, name, *handle)?;
                continue;
            }
            let inode = tree.inode(*child);
            let meta = meta(inode);
            let handle = match &inode.kind {
                Kind::Directory(_) => {
                    let handle = builder.mkdir(parent, name, meta)?;
                    directories.push((*child, handle));
                    handle
                }
                Kind::File { layer, offset, length } => {
                    let handle = builder.file(parent, name, meta, *length)?;
                    if *length > 0 {
                        files.push((handle, *layer, *offset, *length));
                    }
                    handle
                }
                Kind::Symlink(target) => builder.symlink(parent, name, target, meta)?,
                Kind::Character(major, minor) => {
                    builder.mknod(parent, name, meta, SpecialKind::Char { major: *major, minor: *minor })?
                }
                Kind::Block(major, minor) => {
                    builder.mknod(parent, name, meta, SpecialKind::Block { major: *major, minor: *minor })?
                }
                Kind::Fifo => builder.mknod(parent, name, meta, SpecialKind::Fifo)?,
            };
            attributes(builder, handle, inode)?;
            made.insert(*child, handle);
        }
    }
    Ok(())
}

fn meta(inode: &Inode) -> Meta {
    Meta::new(inode.mode, inode.uid, inode.gid, inode.mtime)
}

fn attributes(builder: &mut FsBuilder, handle: InodeHandle, inode: &Inode) -> mkext4::Result<()> {
    inode.xattrs.iter().try_for_each(|(name, value)| builder.set_xattr(handle, name, value))
}

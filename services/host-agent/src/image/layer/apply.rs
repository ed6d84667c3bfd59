//! Applies layers, lowest first: contents go straight into the filesystem, names into the tree (OCI image-spec,
//! "Applying Changesets").

use std::path::{Path, PathBuf};

use contract::ApiError;
use tokio_util::sync::CancellationToken;

use super::{
    Packed, components,
    pipe::{self, Chunks, Failure},
    refused,
    tar::{self, Member, Part, Reader},
};
use crate::image::{
    ext4::{self, Contents, Meta, Writer, file_type},
    limits::{ENTRIES_MAX, Limits},
    progress::Reporter,
    storage_error,
    tree::{Found, Target, Tree, Walk},
};

/// How names begin that hide others.
const WHITEOUT: &[u8] = b".wh.";
/// What hides all of its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS' own notes.
const NOTE: &[u8] = b".wh..wh.";

/// An image in the making.
pub(in crate::image) struct Applier {
    rootfs: PathBuf,
    writer: Writer,
    tree: Tree,
    limits: Limits,
    cancel: CancellationToken,
    /// Bytes of all layers so far, and of all files, holes counted.
    unpacked: u64,
    bytes: u64,
    entries: u64,
    /// The directory of the last entry: the next one mostly has the same.
    parent: Option<(Vec<u8>, u32)>,
}

/// Why an entry was not applied.
enum Fault {
    Archive(tar::Error),
    Write(ext4::Error),
    Entry(String),
    Limit(String),
}

impl From<tar::Error> for Fault {
    fn from(error: tar::Error) -> Self {
        Self::Archive(error)
    }
}

impl From<ext4::Error> for Fault {
    fn from(error: ext4::Error) -> Self {
        Self::Write(error)
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Write(ext4::Error::Io(error))
    }
}

fn wrong(why: &str) -> Fault {
    Fault::Entry(why.to_owned())
}

impl Applier {
    /// Begins the filesystem of an image at a path.
    pub(in crate::image) fn new(
        rootfs: &Path,
        uuid: uuid::Uuid,
        limits: &Limits,
        cancel: &CancellationToken,
    ) -> Result<Self, ApiError> {
        let dir = rootfs.parent().unwrap_or(rootfs);
        let now = time::OffsetDateTime::now_utc().unix_timestamp();
        let writer =
            Writer::create(rootfs, *uuid.as_bytes(), now, cancel.clone()).map_err(|error| failed(rootfs, error))?;
        let tree = Tree::new(dir).map_err(|error| storage_error(rootfs, &error))?;
        Ok(Self {
            rootfs: rootfs.to_owned(),
            writer,
            tree,
            limits: *limits,
            cancel: cancel.clone(),
            unpacked: 0,
            bytes: 0,
            entries: 0,
            parent: None,
        })
    }

    /// Applies the next layer.
    ///
    /// # Errors
    /// Its bytes are not those they should be, are no archive, or hold what a host does not take.
    pub(in crate::image) fn layer(&mut self, packed: Packed, progress: &Reporter) -> Result<(), ApiError> {
        let digest = packed.descriptor.digest.clone();
        let (limits, cancel) = (self.limits, self.cancel.clone());
        let budget = limits.unpacked - self.unpacked;
        self.tree.next_layer();
        self.parent = None;
        let length = pipe::unpack(packed, budget, &limits, progress, &cancel, |chunks| self.entries(&digest, chunks))?;
        self.unpacked += length;
        Ok(())
    }

    /// Writes what is left of the filesystem; gives its bytes.
    pub(in crate::image) fn finish(self) -> Result<u64, ApiError> {
        self.tree.finish(self.writer).map_err(|error| failed(&self.rootfs, error))
    }

    fn entries(&mut self, digest: &str, chunks: &mut Chunks) -> Result<(), Failure> {
        let mut reader = Reader::new(chunks);
        loop {
            let (path, applied) = match reader.next() {
                Ok(None) => break,
                Ok(Some(member)) => {
                    let applied = self.entry(&member, &mut reader);
                    (member.path, applied)
                }
                Err(error) => (Vec::new(), Err(error.into())),
            };
            applied.map_err(|fault| self.failure(digest, &path, fault))?;
        }
        reader.drain().map_err(|error| self.failure(digest, b"", error.into()))
    }

    fn failure(&self, digest: &str, path: &[u8], fault: Fault) -> Failure {
        let archive = |why: &dyn std::fmt::Display| {
            ApiError::invalid_argument(format!("the layer {digest} is no tar archive: {why}"))
        };
        let (error, doubtful) = match fault {
            Fault::Archive(error) => (archive(&error), true),
            Fault::Write(ext4::Error::Refused(why)) => {
                (refused(digest, path, &format!("ext4 cannot hold: {why}")), false)
            }
            Fault::Write(error) => (failed(&self.rootfs, error), false),
            Fault::Entry(why) => (refused(digest, path, &why), true),
            Fault::Limit(why) => (ApiError::invalid_argument(why), false),
        };
        Failure { error, doubtful }
    }

    /// Applies one entry.
    fn entry(&mut self, member: &Member, reader: &mut Reader<&mut Chunks>) -> Result<(), Fault> {
        self.count(member)?;
        let path = components(&member.path).map_err(Fault::Entry)?;
        let Some((name, parent)) = path.split_last() else {
            return self.root(member);
        };
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(name, hidden, parent);
        }
        let parent = self.parent(parent)?;
        let there = self.tree.get(parent, name)?;
        let meta = meta(member);
        let kind = match member.kind {
            tar::Kind::Directory => return self.directory(parent, name, there, member),
            tar::Kind::Link => return self.link(parent, name, there, member),
            tar::Kind::File => file_type::REG,
            tar::Kind::Symlink => file_type::SYMLINK,
            tar::Kind::Character => file_type::CHR,
            tar::Kind::Block => file_type::BLK,
            tar::Kind::Fifo => file_type::FIFO,
        };
        let (major, minor) = member.device;
        let content = match member.kind {
            tar::Kind::File => {
                let mut contents = Contents::default();
                reader.content(|part| match part {
                    Part::Data(bytes) => self.writer.data(&mut contents, bytes).map_err(Fault::from),
                    Part::Hole(length) => self.writer.hole(&mut contents, length).map_err(Fault::from),
                })?;
                ext4::Kind::File(contents)
            }
            tar::Kind::Symlink if member.link.is_empty() || member.link.len() >= super::PATH_MAX => {
                return Err(wrong("has a target no filesystem takes"));
            }
            tar::Kind::Symlink => ext4::Kind::Symlink(&member.link),
            _ if kind != file_type::FIFO && !self.limits.devices => {
                return Err(wrong("is a device, which this host does not take (WARREN_IMAGE_DEVICES)"));
            }
            tar::Kind::Character => ext4::Kind::Character(major, minor),
            tar::Kind::Block => ext4::Kind::Block(major, minor),
            _ => ext4::Kind::Fifo,
        };
        let inode = self.writer.add(&meta, &member.xattrs, content)?;
        self.put(parent, name, there, Target::Other { inode, kind })
    }

    /// Counts what an image asks of a host.
    fn count(&mut self, member: &Member) -> Result<(), Fault> {
        self.entries += 1;
        let limit = self.limits.entries.min(ENTRIES_MAX);
        // Directories that no entry describes, too; lost+found is every filesystem's.
        if self.entries.max(self.tree.len() as u64 - 1) > limit {
            return Err(Fault::Limit(format!("the image has more than {limit} entries (WARREN_IMAGE_ENTRIES)")));
        }
        self.bytes = self.bytes.saturating_add(member.size);
        if self.bytes > self.limits.unpacked {
            return Err(Fault::Limit(format!(
                "the image's files have more than {} bytes (WARREN_IMAGE_BYTES)",
                self.limits.unpacked
            )));
        }
        Ok(())
    }

    fn root(&mut self, member: &Member) -> Result<(), Fault> {
        if member.kind != tar::Kind::Directory {
            return Err(wrong("makes the root something else than a directory"));
        }
        Ok(self.writer.redescribe(ext4::ROOT, &meta(member), &member.xattrs)?)
    }

    fn whiteout(&mut self, name: &[u8], hidden: &[u8], parent: &[&[u8]]) -> Result<(), Fault> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(wrong("hides nothing"));
        }
        let found = match self.tree.walk(&mut self.writer, parent, Walk::Look)? {
            Found::Directory(found) => found,
            // There is nothing to hide.
            Found::Nothing | Found::Blocked => return Ok(()),
        };
        self.parent = None;
        match name {
            OPAQUE => Ok(self.tree.clean(found)?),
            _ if name.starts_with(NOTE) => Ok(()),
            _ => Ok(self.tree.hide(found, hidden)?),
        }
    }

    fn directory(&mut self, parent: u32, name: &[u8], there: Option<Target>, member: &Member) -> Result<(), Fault> {
        let meta = meta(member);
        if let Some(target @ Target::Directory(directory)) = there {
            let inode = self.tree.inode(directory);
            self.writer.redescribe(inode, &meta, &member.xattrs)?;
            return Ok(self.tree.keep(parent, name, target)?);
        }
        let inode = self.writer.add(&meta, &member.xattrs, ext4::Kind::Directory)?;
        self.tree.make_directory(parent, name, inode)?;
        if there.is_some() {
            self.parent = None;
        }
        Ok(())
    }

    fn link(&mut self, parent: u32, name: &[u8], there: Option<Target>, member: &Member) -> Result<(), Fault> {
        let path = components(&member.link).map_err(|why| Fault::Entry(format!("is a hard link to what {why}")))?;
        let (last, above) = path.split_last().ok_or_else(|| wrong("is a hard link to a directory"))?;
        let target = match self.tree.walk(&mut self.writer, above, Walk::Look)? {
            Found::Directory(above) => self.tree.get(above, last)?,
            Found::Nothing | Found::Blocked => None,
        };
        match target {
            None => Err(wrong("is a hard link to nothing")),
            Some(Target::Directory(_)) => Err(wrong("is a hard link to a directory")),
            Some(target) => self.put(parent, name, there, target),
        }
    }

    fn put(&mut self, parent: u32, name: &[u8], there: Option<Target>, target: Target) -> Result<(), Fault> {
        if there.is_some() {
            // It may have been a part of the last entry's path.
            self.parent = None;
        }
        Ok(self.tree.put(parent, name, target)?)
    }

    /// The directory of a path, made where it is missing.
    fn parent(&mut self, path: &[&[u8]]) -> Result<u32, Fault> {
        let whole = path.join(&b'/');
        if let Some((last, directory)) = &self.parent
            && *last == whole
        {
            return Ok(*directory);
        }
        match self.tree.walk(&mut self.writer, path, Walk::Make)? {
            Found::Directory(directory) => {
                self.parent = Some((whole, directory));
                Ok(directory)
            }
            Found::Nothing | Found::Blocked => Err(wrong("has a parent that is no directory inside the image")),
        }
    }
}

fn meta(member: &Member) -> Meta {
    Meta { mode: member.mode, uid: member.uid, gid: member.gid, mtime: member.mtime }
}

fn failed(rootfs: &Path, error: ext4::Error) -> ApiError {
    match error {
        ext4::Error::Io(error) => storage_error(rootfs, &error),
        ext4::Error::Refused(why) => {
            ApiError::invalid_argument(format!("the image does not fit an ext4 filesystem: {why}"))
        }
        ext4::Error::Cancelled => ApiError::cancelled("the staging was discarded"),
    }
}

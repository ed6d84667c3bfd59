//! The merged tree of an image's layers: in memory only how names hang together, some twenty bytes each. The names
//! themselves are in a spool, what they lead to is in the filesystem being written.

mod index;
mod names;
mod walk;

use std::{io, path::Path};

use super::ext4::{self, Error, Name, Writer, file_type};
use index::Index;
use names::Names;

pub(super) use walk::{Found, Walk};

/// No entry.
const NONE: u32 = u32::MAX;
/// The root's number among the directories.
pub(super) const ROOT: u32 = 0;
/// Of a target, the bits that number an inode or a directory; the rest are [`file_type`]'s.
const NUMBER: u32 = (1 << 29) - 1;
/// Entries of one piece of a list: lists grow by pieces, which are never moved.
const PIECE: usize = 1 << 14;

/// A list that grows without being copied.
struct List<T>(Vec<Vec<T>>);

impl<T: Copy> List<T> {
    fn push(&mut self, value: T) {
        if self.0.last().is_none_or(|piece| piece.len() == PIECE) {
            // Small trees need little.
            self.0.push(if self.0.is_empty() { Vec::new() } else { Vec::with_capacity(PIECE) });
        }
        if let Some(piece) = self.0.last_mut() {
            piece.push(value);
        }
    }

    fn len(&self) -> usize {
        self.0.last().map_or(0, |last| (self.0.len() - 1) * PIECE + last.len())
    }

    fn get(&self, n: u32) -> T {
        self.0[n as usize / PIECE][n as usize % PIECE]
    }

    fn at(&mut self, n: u32) -> &mut T {
        &mut self.0[n as usize / PIECE][n as usize % PIECE]
    }
}

/// A name in a directory.
#[derive(Clone, Copy)]
struct Entry {
    /// The directory it is in; [`NONE`] once it was taken away.
    directory: u32,
    /// The next entry of the same directory.
    next: u32,
    /// Where its name is.
    name: u32,
    /// What it leads to: [`file_type`], and the number of a directory or of another inode.
    target: u32,
}

/// A directory.
#[derive(Clone, Copy)]
struct Directory {
    inode: u32,
    /// [`NONE`] once it was taken away; the root is its own.
    parent: u32,
    /// Its last entry.
    first: u32,
    /// Its own entry.
    entry: u32,
}

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Directory(u32),
    Other { inode: u32, kind: u8 },
}

impl Target {
    fn read(bits: u32) -> Self {
        match ((bits >> 29) as u8, bits & NUMBER) {
            (file_type::DIR, directory) => Self::Directory(directory),
            (kind, inode) => Self::Other { inode, kind },
        }
    }

    fn bits(self) -> u32 {
        match self {
            Self::Directory(directory) => (u32::from(file_type::DIR) << 29) | directory,
            Self::Other { inode, kind } => (u32::from(kind) << 29) | inode,
        }
    }
}

/// The tree.
pub(super) struct Tree {
    entries: List<Entry>,
    /// The layer that made or last touched an entry.
    touched: List<u8>,
    directories: List<Directory>,
    /// The last layer of which a directory holds nothing but its own: what it hides there is hidden already.
    cleaned: List<u8>,
    index: Index,
    names: Names,
    /// The current layer, counted from 1.
    layer: u8,
}

impl Tree {
    /// A root with `lost+found`; names are spooled to a directory.
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let mut tree = Self {
            entries: List(Vec::new()),
            touched: List(Vec::new()),
            directories: List(Vec::new()),
            cleaned: List(Vec::new()),
            index: Index::new(),
            names: Names::new(dir)?,
            layer: 0,
        };
        tree.directories.push(Directory { inode: ext4::ROOT, parent: ROOT, first: NONE, entry: NONE });
        tree.cleaned.push(0);
        tree.make_directory(ROOT, b"lost+found", ext4::LOST_AND_FOUND)?;
        Ok(tree)
    }

    /// The entries that come are of the next layer.
    pub(super) fn next_layer(&mut self) {
        self.layer += 1;
    }

    /// How many names there were.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// A directory's inode.
    pub(super) fn inode(&self, directory: u32) -> u32 {
        self.directories.get(directory).inode
    }

    /// The entry of a name.
    fn find(&mut self, directory: u32, name: &[u8]) -> io::Result<Option<u32>> {
        let hash = self.index.hash(directory, name);
        let (entries, names) = (&self.entries, &mut self.names);
        self.index.find(hash, |entry| {
            let entry = entries.get(entry);
            Ok(entry.directory == directory && names.is(entry.name, name)?)
        })
    }

    /// What a name leads to.
    pub(super) fn get(&mut self, directory: u32, name: &[u8]) -> io::Result<Option<Target>> {
        Ok(self.find(directory, name)?.map(|entry| Target::read(self.entries.get(entry).target)))
    }

    /// Makes a name lead to something; what it led to before goes.
    pub(super) fn put(&mut self, directory: u32, name: &[u8], target: Target) -> io::Result<()> {
        let layer = self.layer;
        let entry = if let Some(entry) = self.find(directory, name)? {
            self.abandon(self.entries.get(entry).target);
            self.entries.at(entry).target = target.bits();
            *self.touched.at(entry) = layer;
            entry
        } else {
            let place = self.names.push(name)?;
            let entry = self.entries.len() as u32;
            let next = std::mem::replace(&mut self.directories.at(directory).first, entry);
            self.entries.push(Entry { directory, next, name: place, target: target.bits() });
            self.touched.push(layer);
            self.remember(entry, directory, name)?;
            entry
        };
        if let Target::Directory(made) = target {
            self.directories.at(made).entry = entry;
        }
        Ok(())
    }

    /// The current layer says of a name that it stays what it is.
    pub(super) fn keep(&mut self, directory: u32, name: &[u8], target: Target) -> io::Result<()> {
        if let Some(entry) = self.find(directory, name)? {
            debug_assert!(Target::read(self.entries.get(entry).target) == target);
            *self.touched.at(entry) = self.layer;
        }
        Ok(())
    }

    /// Makes an empty directory.
    pub(super) fn make_directory(&mut self, parent: u32, name: &[u8], inode: u32) -> io::Result<u32> {
        let made = self.directories.len() as u32;
        self.directories.push(Directory { inode, parent, first: NONE, entry: NONE });
        self.cleaned.push(self.layer);
        self.put(parent, name, Target::Directory(made))?;
        Ok(made)
    }

    fn remember(&mut self, entry: u32, directory: u32, name: &[u8]) -> io::Result<()> {
        if !self.index.is_full() {
            self.index.insert(self.index.hash(directory, name), entry);
            return Ok(());
        }
        let all = 0..self.entries.len() as u32;
        let there = |entries: &List<Entry>, n: u32| entries.get(n).directory != NONE;
        self.index.clear(all.clone().filter(|n| there(&self.entries, *n)).count());
        let mut buffer = [0; 255];
        for n in all.filter(|n| there(&self.entries, *n)) {
            let entry = self.entries.get(n);
            let length = self.names.read(entry.name, &mut buffer)?;
            self.index.insert(self.index.hash(entry.directory, &buffer[..length]), n);
        }
        Ok(())
    }

    /// A directory no name leads to any more goes with all it holds.
    fn abandon(&mut self, target: u32) {
        if let Target::Directory(directory) = Target::read(target) {
            self.directories.at(directory).parent = NONE;
        }
    }

    /// The current layer speaks of a directory, or of something in it.
    fn touch(&mut self, mut directory: u32) {
        while directory != ROOT {
            let Directory { entry, parent, .. } = self.directories.get(directory);
            if std::mem::replace(self.touched.at(entry), self.layer) == self.layer {
                return;
            }
            directory = parent;
        }
    }

    /// Takes a name of the layers below away, if it is there, but not what the current layer made of it.
    pub(super) fn hide(&mut self, directory: u32, name: &[u8]) -> io::Result<()> {
        let Some(entry) = self.find(directory, name)? else { return Ok(()) };
        if self.touched.get(entry) != self.layer {
            return self.take_away(entry);
        }
        match Target::read(self.entries.get(entry).target) {
            Target::Directory(directory) => self.clean(directory),
            Target::Other { .. } => Ok(()),
        }
    }

    /// Takes all of a directory away that is of the layers below.
    pub(super) fn clean(&mut self, directory: u32) -> io::Result<()> {
        let mut left = vec![directory];
        while let Some(directory) = left.pop() {
            if std::mem::replace(self.cleaned.at(directory), self.layer) == self.layer {
                continue;
            }
            let mut at = self.directories.get(directory).first;
            while at != NONE {
                let entry = self.entries.get(at);
                if entry.directory != NONE {
                    if self.touched.get(at) != self.layer {
                        self.take_away(at)?;
                    } else if let Target::Directory(below) = Target::read(entry.target) {
                        left.push(below);
                    }
                }
                at = entry.next;
            }
        }
        Ok(())
    }

    fn take_away(&mut self, at: u32) -> io::Result<()> {
        let entry = self.entries.get(at);
        let mut name = [0; 255];
        let length = self.names.read(entry.name, &mut name)?;
        self.index.remove(self.index.hash(entry.directory, &name[..length]), at);
        self.entries.at(at).directory = NONE;
        self.abandon(entry.target);
        Ok(())
    }

    /// Writes all directories that are left and ends the filesystem; gives its bytes.
    pub(super) fn finish(mut self, mut writer: Writer) -> Result<u64, Error> {
        match self.get(ROOT, b"lost+found")? {
            Some(Target::Directory(_)) => {}
            Some(_) => return Err(Error::Refused("/lost+found is no directory, which ext4 needs it to be".to_owned())),
            None => {
                let meta = ext4::Meta { mode: 0o700, uid: 0, gid: 0, mtime: (0, 0) };
                let inode = writer.add(&meta, &[], ext4::Kind::Directory)?;
                self.make_directory(ROOT, b"lost+found", inode)?;
            }
        }
        self.index.forget();
        let mut links = vec![0u16; writer.last_inode() as usize + 1];
        // A directory is made after the one it is in, so what became of that is known.
        for n in 0..self.directories.len() as u32 {
            let Directory { inode, parent, .. } = self.directories.get(n);
            if parent == NONE || (n != ROOT && self.directories.get(parent).parent == NONE) {
                self.directories.at(n).parent = NONE;
                continue;
            }
            let names = self.names_of(n, &mut links)?;
            let spare = if inode == ext4::LOST_AND_FOUND { ext4::LOST_AND_FOUND_SPARE } else { 0 };
            let (parent, spool) = (self.directories.get(parent).inode, &mut self.names);
            links[inode as usize] =
                writer.directory(inode, parent, &names, spare, &mut |place, into| spool.read(place, into))?;
        }
        drop(self);
        writer.finish(&mut links)
    }

    /// A directory's names, in the order they came; counts the links of what is no directory.
    fn names_of(&self, directory: u32, links: &mut [u16]) -> Result<Vec<Name>, Error> {
        let mut names = Vec::new();
        let mut at = self.directories.get(directory).first;
        while at != NONE {
            let entry = self.entries.get(at);
            at = entry.next;
            if entry.directory == NONE {
                continue;
            }
            let (inode, kind) = match Target::read(entry.target) {
                Target::Directory(directory) => (self.inode(directory), file_type::DIR),
                Target::Other { inode, kind } => {
                    let links = &mut links[inode as usize];
                    if *links == ext4::LINKS_MAX {
                        return Err(Error::Refused(format!(
                            "a file has more than the {} names ext4 takes",
                            ext4::LINKS_MAX
                        )));
                    }
                    *links += 1;
                    (inode, kind)
                }
            };
            names.push(Name { inode, kind, place: entry.name });
        }
        names.reverse();
        Ok(names)
    }
}

#[cfg(test)]
mod tests;

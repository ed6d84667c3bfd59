//! The merged tree of an image's layers, in memory: names and places, no contents.

use std::collections::BTreeMap;

use contract::ApiError;

use super::layer::{Content, Entry, refused};

/// The root's index.
pub(super) const ROOT: usize = 0;
/// How many symlinks one path may lead through (Linux's MAXSYMLINKS).
const HOPS: usize = 40;

/// What an inode is.
#[derive(Debug)]
pub(super) enum Kind {
    Directory(BTreeMap<String, usize>),
    /// So many bytes of that layer's spool from that offset on.
    File {
        layer: usize,
        offset: u64,
        length: u64,
    },
    Symlink(String),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// An inode; several names may lead to it.
#[derive(Debug)]
pub(super) struct Inode {
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub xattrs: Vec<(String, Vec<u8>)>,
    pub kind: Kind,
}

/// The tree.
#[derive(Debug)]
pub(super) struct Tree {
    inodes: Vec<Inode>,
}

impl Tree {
    /// An empty root.
    pub(super) fn new() -> Self {
        Self { inodes: vec![directory()] }
    }

    pub(super) fn inode(&self, index: usize) -> &Inode {
        &self.inodes[index]
    }

    /// Takes away what a layer hides of the layers below it. All whiteouts of a layer come before its other entries.
    pub(super) fn hide(&mut self, entry: &Entry) {
        match entry.content {
            Content::Opaque => {
                if let Some(index) = self.existing(&entry.path)
                    && let Kind::Directory(children) = &mut self.inodes[index].kind
                {
                    children.clear();
                }
            }
            Content::Whiteout => {
                if let Some((name, parent)) = entry.path.split_last()
                    && let Some(parent) = self.existing(parent)
                    && let Kind::Directory(children) = &mut self.inodes[parent].kind
                {
                    children.remove(name);
                }
            }
            _ => {}
        }
    }

    /// Adds what an entry makes.
    pub(super) fn add(&mut self, layer: usize, digest: &str, entry: Entry) -> Result<(), ApiError> {
        let refuse = |why: &str| refused(digest, entry.path.join("/").as_bytes(), why);
        let kind = match entry.content {
            Content::Whiteout | Content::Opaque => return Ok(()),
            Content::Link(ref target) => {
                let target = self.existing(target).ok_or_else(|| refuse("is a hard link to nothing"))?;
                if matches!(self.inodes[target].kind, Kind::Directory(_)) {
                    return Err(refuse("is a hard link to a directory"));
                }
                let (name, parent) = entry.path.split_last().ok_or_else(|| refuse("makes the root a link"))?;
                let parent = self.parent(parent, &refuse)?;
                return self.put(parent, name, target, &refuse);
            }
            Content::Directory => Kind::Directory(BTreeMap::new()),
            Content::File { offset, length } => Kind::File { layer, offset, length },
            Content::Symlink(ref target) => Kind::Symlink(target.clone()),
            Content::Character(major, minor) => Kind::Character(major, minor),
            Content::Block(major, minor) => Kind::Block(major, minor),
            Content::Fifo => Kind::Fifo,
        };
        let (mode, uid, gid, mtime) = (entry.mode, entry.uid, entry.gid, entry.mtime);
        let is_directory = matches!(kind, Kind::Directory(_));
        let Some((name, parent)) = entry.path.split_last() else {
            if !is_directory {
                return Err(refuse("makes the root something else than a directory"));
            }
            self.describe(ROOT, mode, uid, gid, mtime, entry.xattrs.clone());
            return Ok(());
        };
        let parent = self.parent(parent, &refuse)?;
        if is_directory
            && let Some(index) = self.child(parent, name)
            && matches!(self.inodes[index].kind, Kind::Directory(_))
        {
            self.describe(index, mode, uid, gid, mtime, entry.xattrs.clone());
            return Ok(());
        }
        self.inodes.push(Inode { mode, uid, gid, mtime, xattrs: entry.xattrs.clone(), kind });
        let index = self.inodes.len() - 1;
        self.put(parent, name, index, &refuse)
    }

    fn describe(
        &mut self,
        index: usize,
        mode: u16,
        uid: u32,
        gid: u32,
        mtime: (i64, u32),
        xattrs: Vec<(String, Vec<u8>)>,
    ) {
        let inode = &mut self.inodes[index];
        (inode.mode, inode.uid, inode.gid, inode.mtime, inode.xattrs) = (mode, uid, gid, mtime, xattrs);
    }

    fn child(&self, directory: usize, name: &str) -> Option<usize> {
        match &self.inodes[directory].kind {
            Kind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn put(
        &mut self,
        parent: usize,
        name: &str,
        index: usize,
        refuse: &impl Fn(&str) -> ApiError,
    ) -> Result<(), ApiError> {
        match &mut self.inodes[parent].kind {
            Kind::Directory(children) => {
                children.insert(name.to_owned(), index);
                Ok(())
            }
            _ => Err(refuse("has a parent that is no directory")),
        }
    }

    /// The inode of a path, its last component not followed.
    fn existing(&self, path: &[String]) -> Option<usize> {
        let Some((name, parent)) = path.split_last() else { return Some(ROOT) };
        let mut hops = 0;
        let parent = self.walk(ROOT, parent, &mut hops).ok()?;
        self.child(parent, name)
    }

    /// The directory of a path, made where it is missing; symlinks are followed within the tree.
    fn parent(&mut self, path: &[String], refuse: &impl Fn(&str) -> ApiError) -> Result<usize, ApiError> {
        let mut at = ROOT;
        for (n, name) in path.iter().enumerate() {
            let mut hops = 0;
            at = match self.child(at, name) {
                None => {
                    self.inodes.push(directory());
                    let made = self.inodes.len() - 1;
                    self.put(at, name, made, refuse)?;
                    made
                }
                Some(_) => self
                    .walk(ROOT, &path[..=n], &mut hops)
                    .map_err(|()| refuse("has a parent that is no directory inside the image"))?,
            };
        }
        match self.inodes[at].kind {
            Kind::Directory(_) => Ok(at),
            _ => Err(refuse("has a parent that is no directory")),
        }
    }

    /// Follows a path to a directory; `..` in a symlink's target stops at the root, as in a chroot.
    fn walk(&self, from: usize, path: &[String], hops: &mut usize) -> Result<usize, ()> {
        let mut trail = vec![from];
        for name in path {
            self.step(&mut trail, name, hops)?;
        }
        trail.last().copied().ok_or(())
    }

    fn step(&self, trail: &mut Vec<usize>, name: &str, hops: &mut usize) -> Result<(), ()> {
        if name == ".." {
            if trail.len() > 1 {
                trail.pop();
            }
            return Ok(());
        }
        let at = *trail.last().ok_or(())?;
        let child = self.child(at, name).ok_or(())?;
        match &self.inodes[child].kind {
            Kind::Directory(_) => trail.push(child),
            Kind::Symlink(target) => {
                *hops += 1;
                if *hops > HOPS {
                    return Err(());
                }
                if target.starts_with('/') {
                    trail.truncate(1);
                    trail[0] = ROOT;
                }
                for part in target.split('/').filter(|part| !part.is_empty() && *part != ".") {
                    self.step(trail, part, hops)?;
                }
            }
            _ => return Err(()),
        }
        Ok(())
    }
}

fn directory() -> Inode {
    Inode { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new(), kind: Kind::Directory(BTreeMap::new()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, content: Content) -> Entry {
        let path = path.split('/').map(str::to_owned).collect();
        Entry { path, mode: 0o644, uid: 0, gid: 0, mtime: (0, 0), xattrs: vec![], content }
    }

    fn file() -> Content {
        Content::File { offset: 0, length: 1 }
    }

    #[test]
    fn whiteouts_hide_lower_layers_only() {
        let mut tree = Tree::new();
        for path in ["etc/a", "etc/b", "opt/x"] {
            tree.add(0, "l0", entry(path, file())).unwrap();
        }
        tree.hide(&entry("etc/a", Content::Whiteout));
        tree.hide(&entry("opt", Content::Opaque));
        tree.add(1, "l1", entry("opt/y", file())).unwrap();
        let there = |path: &str| tree.existing(&path.split('/').map(str::to_owned).collect::<Vec<_>>()).is_some();
        assert!(!there("etc/a") && there("etc/b") && !there("opt/x") && there("opt/y"));
    }

    #[test]
    fn a_symlinked_parent_is_followed_inside_and_never_outside() {
        let mut tree = Tree::new();
        tree.add(0, "l", entry("usr/bin/sh", file())).unwrap();
        tree.add(0, "l", entry("bin", Content::Symlink("usr/bin".into()))).unwrap();
        tree.add(0, "l", entry("out", Content::Symlink("../../../usr".into()))).unwrap();
        tree.add(0, "l", entry("loop", Content::Symlink("loop".into()))).unwrap();
        tree.add(1, "l", entry("bin/ls", file())).unwrap();
        tree.add(1, "l", entry("out/inside", file())).unwrap();
        assert!(tree.existing(&["usr".into(), "bin".into(), "ls".into()]).is_some());
        assert!(tree.existing(&["usr".into(), "inside".into()]).is_some());
        assert!(tree.add(1, "l", entry("loop/x", file())).is_err());
        assert!(tree.add(1, "l", entry("usr/bin/sh/x", file())).is_err());
        assert!(tree.add(1, "l", entry("hard", Content::Link(vec!["nowhere".into()]))).is_err());
    }

    #[test]
    fn hard_links_share_an_inode_across_layers() {
        let mut tree = Tree::new();
        tree.add(0, "l", entry("a", file())).unwrap();
        tree.add(1, "l", entry("b", Content::Link(vec!["a".into()]))).unwrap();
        assert_eq!(tree.existing(&["a".into()]), tree.existing(&["b".into()]));
    }
}

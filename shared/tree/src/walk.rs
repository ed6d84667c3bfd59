//! A **walk**: the tree of a plain directory, with every file read once for its digest.

use std::{fs, io, os::fd::OwnedFd, path::Path};

use contract::{
    FileName,
    worktree::{ENTRIES_MAX, Node},
};

use crate::{
    Entry, Tree, blob_id,
    files::{Root, Stat, join},
};

/// The most lines of what was left out.
pub(crate) const WARNINGS_MAX: usize = 64;

/// What a directory holds.
#[derive(Clone, Debug, Default)]
pub struct Walked {
    /// All that has a place in a tree.
    pub tree: Tree,
    /// What has none (sockets, pipes, devices), at most 64 lines.
    pub warnings: Vec<String>,
}

/// Reads a directory. `keep` is asked for each path below it, with whether that is a directory, before it is looked into. Symbolic links are
/// entries and not followed. What vanishes meanwhile was not there.
///
/// # Errors
/// Something cannot be read, or has no place in a tree.
pub fn walk(root: &Path, keep: impl FnMut(&FileName, bool) -> bool) -> io::Result<Walked> {
    let root = fs::canonicalize(root)?;
    walk_in(&Root::open(&root)?, &root, keep)
}

/// The same of a directory that is held open, whatever path it has meanwhile. Its entries are read from below `path`.
///
/// # Errors
/// Something cannot be read, or has no place in a tree.
pub fn walk_at(root: OwnedFd, path: &Path, keep: impl FnMut(&FileName, bool) -> bool) -> io::Result<Walked> {
    walk_in(&Root::hold(root)?, path, keep)
}

fn walk_in(root: &Root, path: &Path, mut keep: impl FnMut(&FileName, bool) -> bool) -> io::Result<Walked> {
    let mut entries = Vec::new();
    let mut warnings = Vec::new();
    let mut waiting = vec![Vec::new()];
    while let Some(directory) = waiting.pop() {
        let names = root.list(&directory).map_err(|error| named(&directory, error))?;
        for (name, _) in names {
            let name = FileName(join(&directory, &name));
            let Some(stat) = root.stat(&name.0).map_err(|error| named(&name.0, error))? else { continue };
            if !keep(&name, stat.is_dir()) {
                continue;
            }
            let Some(node) = node(root, &name.0, &stat).map_err(|error| named(&name.0, error))? else {
                if warnings.len() < WARNINGS_MAX {
                    warnings.push(format!("{name} was left out: it is no file, directory or symbolic link"));
                }
                continue;
            };
            if stat.is_dir() {
                waiting.push(name.0.clone());
            }
            if entries.len() as u64 == ENTRIES_MAX {
                return Err(io::Error::other(format!("{} holds more than {ENTRIES_MAX} entries", path.display())));
            }
            let from = stat.is_file().then(|| path.join(name.as_path()));
            entries.push(Entry { path: name, mtime: stat.mtime, node, from });
        }
    }
    Ok(Walked { tree: Tree::new(entries).map_err(io::Error::other)?, warnings })
}

/// What stands there; none where it has no place in a tree.
fn node(root: &Root, path: &[u8], stat: &Stat) -> io::Result<Option<Node>> {
    let mode = stat.bits();
    if stat.is_dir() {
        return Ok(Some(Node::Directory { mode }));
    }
    if stat.is_symlink() {
        return Ok(Some(Node::Symlink { target: FileName(root.link(path)?) }));
    }
    if !stat.is_file() {
        return Ok(None);
    }
    let digest = blob_id(root.file(path)?, stat.size)?;
    Ok(Some(Node::File { mode, size: stat.size, digest }))
}

fn named(path: &[u8], error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", FileName(path.to_vec())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    #[test]
    fn a_directory_becomes_a_tree_without_what_is_not_wanted() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("sub/skipped")).unwrap();
        fs::write(dir.path().join("sub/file"), "hello\n").unwrap();
        fs::write(dir.path().join("sub/skipped/file"), "").unwrap();
        symlink("nowhere", dir.path().join("link")).unwrap();
        let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
        let walked = walk(dir.path(), |path, directory| !(directory && path.0.ends_with(b"skipped"))).unwrap();
        let paths: Vec<_> = walked.tree.entries().iter().map(|entry| entry.path.to_string()).collect();
        assert_eq!(paths, ["link", "sub", "sub/file"]);
        assert_eq!((walked.tree.bytes(), walked.warnings.len()), (6, 1));
        let Node::File { digest, .. } = &walked.tree.get(b"sub/file").unwrap().node else { panic!("no file") };
        assert_eq!(digest, "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}

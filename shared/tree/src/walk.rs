//! A **walk**: the tree of a plain directory, with every file read once for its digest.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

use contract::{
    FileName,
    worktree::{ENTRIES_MAX, Node},
};

use crate::{Entry, Mtime, Tree, blob_id, entry::MODE_MASK};

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
pub fn walk(root: &Path, mut keep: impl FnMut(&FileName, bool) -> bool) -> io::Result<Walked> {
    let mut entries = Vec::new();
    let mut warnings = Vec::new();
    let mut waiting = vec![FileName::default()];
    while let Some(directory) = waiting.pop() {
        for found in fs::read_dir(root.join(directory.as_path()))? {
            let name = found?.file_name();
            let mut path = directory.0.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            let path = FileName(path);
            let from = root.join(path.as_path());
            let metadata = match fs::symlink_metadata(&from) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(named(&from, error)),
            };
            if !keep(&path, metadata.is_dir()) {
                continue;
            }
            let Some(node) = node(&from, &metadata).map_err(|error| named(&from, error))? else {
                if warnings.len() < WARNINGS_MAX {
                    warnings.push(format!("{path} was left out: it is no file, directory or symbolic link"));
                }
                continue;
            };
            if metadata.is_dir() {
                waiting.push(path.clone());
            }
            if entries.len() as u64 == ENTRIES_MAX {
                return Err(io::Error::other(format!("{} holds more than {ENTRIES_MAX} entries", root.display())));
            }
            let from = metadata.is_file().then_some(from);
            entries.push(Entry { path, mtime: Mtime::of(&metadata), node, from });
        }
    }
    Ok(Walked { tree: Tree::new(entries).map_err(io::Error::other)?, warnings })
}

/// What stands there; none where it has no place in a tree.
fn node(path: &Path, metadata: &Metadata) -> io::Result<Option<Node>> {
    let mode = metadata.mode() & MODE_MASK;
    if metadata.is_dir() {
        return Ok(Some(Node::Directory { mode }));
    }
    if metadata.is_symlink() {
        let target = FileName::from(fs::read_link(path)?.as_os_str());
        return Ok(Some(Node::Symlink { target }));
    }
    if !metadata.is_file() {
        return Ok(None);
    }
    let size = metadata.len();
    let digest = blob_id(File::open(path)?, size)?;
    Ok(Some(Node::File { mode, size, digest }))
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
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

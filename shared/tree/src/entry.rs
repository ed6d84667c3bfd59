//! An **entry** of a tree: a path with what stands there; and the **tree** of them, whose rules are checked once, when it is made.

use std::{cmp::Ordering, path::PathBuf};

use contract::{
    FileName,
    worktree::{ENTRIES_MAX, Node},
};

/// The longest path below the tree's root, in bytes: with the workspace's own it stays below Linux's 4096.
pub const PATH_MAX: usize = 3072 - 1;
/// The longest name within a path, in bytes (`NAME_MAX`).
pub const NAME_MAX: usize = 255;
/// The longest target of a symbolic link, in bytes.
pub const TARGET_MAX: usize = 4095;
/// The permission bits an entry may have.
pub const MODE_MASK: u32 = 0o777;

/// When a file's content was last changed, as a Unix time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mtime {
    /// Whole seconds; negative before 1970.
    pub secs: i64,
    /// Nanoseconds on top, below 1 000 000 000.
    pub nanos: u32,
}

impl Mtime {
    /// As `stat(2)` tells it.
    pub fn of(metadata: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self { secs: metadata.mtime(), nanos: u32::try_from(metadata.mtime_nsec()).unwrap_or(0) }
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Below the tree's root: names without `.` and `..`, parted by single slashes.
    pub path: FileName,
    /// When it was last changed; links and directories have one too.
    pub mtime: Mtime,
    /// What it is.
    pub node: Node,
    /// Where a sender reads a file's bytes; needed of files only, and never sent.
    pub from: Option<PathBuf>,
}

/// Why entries are no tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// More than [`ENTRIES_MAX`].
    #[error("the tree has {0} entries, over the limit of {ENTRIES_MAX}")]
    TooMany(usize),
    /// A path no entry may have.
    #[error("{path} cannot be in a tree: {why}")]
    Path {
        /// Which.
        path: FileName,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Twice the same path.
    #[error("{0} is in the tree twice")]
    Twice(FileName),
    /// An entry in something that is no directory of the tree.
    #[error("{0} is not in a directory of the tree")]
    NoParent(FileName),
    /// A mode, digest, target or time no entry may have.
    #[error("{path} has {what}")]
    Value {
        /// Which.
        path: FileName,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// A tree: entries in the order of their paths' bytes, each in a directory that is an entry too (the root is none).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    entries: Vec<Entry>,
}

impl Tree {
    /// Sorts and checks entries.
    ///
    /// # Errors
    /// They are no tree.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, TreeError> {
        entries.sort_unstable_by(|a, b| a.path.0.cmp(&b.path.0));
        if entries.len() as u64 > ENTRIES_MAX {
            return Err(TreeError::TooMany(entries.len()));
        }
        let mut check = Check::default();
        for entry in &entries {
            check.next(&entry.path, matches!(entry.node, Node::Directory { .. }))?;
            check_node(&entry.path, &entry.node, entry.mtime)?;
        }
        Ok(Self { entries })
    }

    /// The same, where directories that are missing become entries with mode 0755 and the latest time of what is in them.
    ///
    /// # Errors
    /// They are no tree.
    pub fn complete(mut entries: Vec<Entry>) -> Result<Self, TreeError> {
        let mut known: std::collections::HashSet<Vec<u8>> = entries.iter().map(|entry| entry.path.0.clone()).collect();
        let mut missing = std::collections::BTreeMap::<Vec<u8>, Mtime>::new();
        for entry in &entries {
            let mut path = &entry.path.0[..];
            while let Some(parent) = parent(path) {
                if known.contains(parent) && !missing.contains_key(parent) {
                    break;
                }
                known.insert(parent.to_vec());
                let latest = missing.entry(parent.to_vec()).or_default();
                *latest = (*latest).max(entry.mtime);
                path = parent;
            }
        }
        entries.extend(missing.into_iter().map(|(path, mtime)| Entry {
            path: FileName(path),
            mtime,
            node: Node::Directory { mode: 0o755 },
            from: None,
        }));
        Self::new(entries)
    }

    /// The entries, by path.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry at a path.
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        let found = self.entries.binary_search_by(|entry| entry.path.0[..].cmp(path));
        found.ok().map(|index| &self.entries[index])
    }

    /// The bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| if let Node::File { size, .. } = entry.node { size } else { 0 }).sum()
    }

    /// The entries, to be changed and made a tree again.
    pub fn into_entries(self) -> Vec<Entry> {
        self.entries
    }
}

/// The directory a path is in; none for those right below the root.
pub fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|byte| *byte == b'/').map(|slash| &path[..slash])
}

/// Checks paths that come in order: each well formed, none twice, each in a directory that came before.
#[derive(Default)]
pub(crate) struct Check {
    last: Option<FileName>,
    directories: std::collections::HashSet<Vec<u8>>,
}

impl Check {
    /// The next one.
    pub(crate) fn next(&mut self, path: &FileName, directory: bool) -> Result<(), TreeError> {
        check_path(path)?;
        match self.last.as_ref().map(|last| last.0.cmp(&path.0)) {
            Some(Ordering::Equal) => return Err(TreeError::Twice(path.clone())),
            Some(Ordering::Greater) => {
                return Err(TreeError::Path { path: path.clone(), why: "it is not in order" });
            }
            _ => {}
        }
        if parent(&path.0).is_some_and(|parent| !self.directories.contains(parent)) {
            return Err(TreeError::NoParent(path.clone()));
        }
        if directory {
            self.directories.insert(path.0.clone());
        }
        self.last = Some(path.clone());
        Ok(())
    }
}

/// Whether a path may be below a tree's root: no empty, `.` or `..` name, nothing too long.
pub(crate) fn check_path(path: &FileName) -> Result<(), TreeError> {
    let wrong = |why| Err(TreeError::Path { path: path.clone(), why });
    if path.0.len() > PATH_MAX {
        return wrong("it is longer than 3071 bytes");
    }
    if path.0.contains(&0) {
        return wrong("it holds a NUL byte");
    }
    for name in path.0.split(|byte| *byte == b'/') {
        match name {
            b"" => return wrong("a name in it is empty"),
            b"." | b".." => return wrong("a name in it is . or .."),
            _ if name.len() > NAME_MAX => return wrong("a name in it is longer than 255 bytes"),
            _ => {}
        }
    }
    Ok(())
}

pub(crate) fn check_node(path: &FileName, node: &Node, mtime: Mtime) -> Result<(), TreeError> {
    let wrong = |what| Err(TreeError::Value { path: path.clone(), what });
    if mtime.nanos >= 1_000_000_000 {
        return wrong("a time of more nanoseconds than a second has");
    }
    match node {
        Node::Directory { mode } | Node::File { mode, .. } if mode & !MODE_MASK != 0 => wrong("mode bits over 0777"),
        Node::File { digest, .. }
            if digest.len() != 40 || digest.bytes().any(|byte| !matches!(byte, b'0'..=b'9' | b'a'..=b'f')) =>
        {
            wrong("a digest that is not 40 hexadecimal digits")
        }
        Node::Symlink { target } if target.0.is_empty() || target.0.len() > TARGET_MAX || target.0.contains(&0) => {
            wrong("a link target that is empty, too long or holds a NUL byte")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &[u8]) -> Entry {
        let node = Node::File { mode: 0o644, size: 0, digest: "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391".into() };
        Entry { path: FileName(path.to_vec()), mtime: Mtime { secs: 7, nanos: 0 }, node, from: None }
    }

    fn directory(path: &[u8]) -> Entry {
        Entry { node: Node::Directory { mode: 0o755 }, ..file(path) }
    }

    #[test]
    fn any_name_of_linux_is_taken_and_what_leads_elsewhere_is_not() {
        let long = [b'x'; 255];
        Tree::new(vec![file(b"a b"), file(b"new\nline"), file(b"\xff\xfe"), file(&long), file(b"..a"), file(b"...")])
            .unwrap();
        for path in [&b""[..], b"/a", b"a/", b"a//b", ".".as_bytes(), b"..", b"a/../b", b"a/.", b"nul\0", &[b'x'; 256]]
        {
            let entries = vec![directory(b"a"), file(path)];
            assert!(matches!(Tree::new(entries), Err(TreeError::Path { .. })), "{path:?}");
        }
    }

    #[test]
    fn entries_are_sorted_and_each_is_in_a_directory() {
        let tree = Tree::new(vec![file(b"a/b"), file(b"a-b"), directory(b"a")]).unwrap();
        let paths: Vec<_> = tree.entries().iter().map(|entry| &entry.path.0[..]).collect();
        assert_eq!(paths, [&b"a"[..], b"a-b", b"a/b"]);
        assert!(tree.get(b"a/b").is_some() && tree.get(b"b").is_none());
        assert_eq!(Tree::new(vec![file(b"a/b")]), Err(TreeError::NoParent(FileName(b"a/b".to_vec()))));
        assert_eq!(Tree::new(vec![file(b"a"), file(b"a/b")]), Err(TreeError::NoParent(FileName(b"a/b".to_vec()))));
        assert_eq!(Tree::new(vec![file(b"a"), directory(b"a")]), Err(TreeError::Twice(FileName(b"a".to_vec()))));
        let completed = Tree::complete(vec![file(b"a/b/c"), file(b"a/d"), file(b"e")]).unwrap();
        assert_eq!(completed.entries().len(), 5);
        assert_eq!(completed.get(b"a/b").unwrap().mtime.secs, 7);
        assert!(Tree::complete(vec![file(b"a"), file(b"a/b")]).is_err());
    }
}

//! The **builder** of a tree: files found in a worktree, each with all directories above it, and files that were made for the guest.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::SystemTime,
};

use contract::{FileName, worktree::Node};
use tree::{Entry, Mtime, Tree};

use crate::{
    error::WorktreeError,
    repo::as_path,
    stat_cache::{Stat, StatCache},
};

/// The most warnings that are kept.
const WARNINGS_MAX: usize = 64;
/// The most threads that read files.
const READERS_MAX: usize = 8;

/// A file that is still to be read.
struct Unread {
    path: Vec<u8>,
    from: PathBuf,
    metadata: Metadata,
}

/// Gathers entries.
#[derive(Default)]
pub(crate) struct Builder {
    entries: BTreeMap<Vec<u8>, Entry>,
    unread: Vec<Unread>,
    /// What stands at each directory that was looked at: whether it is one.
    directories: HashMap<Vec<u8>, bool>,
    warnings: Vec<String>,
    made: usize,
}

impl Builder {
    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len() + self.unread.len()
    }

    /// Says what was left out.
    pub(crate) fn warn(&mut self, warning: String) {
        if self.warnings.len() < WARNINGS_MAX && !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// Adds what stands at a path of a directory, `root`, whose own place in the tree is `at`; whether something does. What is below a
    /// symbolic link is not there.
    pub(crate) fn add(&mut self, root: &Path, at: &[u8], path: &[u8]) -> Result<bool, WorktreeError> {
        if !self.add_parents(root, at, path)? {
            return Ok(false);
        }
        let from = root.join(as_path(path));
        let metadata = match fs::symlink_metadata(&from) {
            Ok(metadata) => metadata,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(false);
            }
            Err(error) => return Err(WorktreeError::read(&from)(error)),
        };
        let whole = join(at, path);
        if metadata.is_file() {
            self.unread.push(Unread { path: whole, from, metadata });
        } else if metadata.is_symlink() {
            let target = fs::read_link(&from).map_err(WorktreeError::read(&from))?;
            let node = Node::Symlink { target: FileName::from(target.as_os_str()) };
            self.put(whole, Mtime::of(&metadata), node, None);
        } else if metadata.is_dir() {
            // What is in it are other paths.
            return Ok(false);
        } else {
            self.warn(format!("{} was left out: it is no file, directory or symbolic link", as_path(&whole).display()));
        }
        Ok(true)
    }

    /// Adds the directories above a path; whether all of them are directories.
    fn add_parents(&mut self, root: &Path, at: &[u8], path: &[u8]) -> Result<bool, WorktreeError> {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(place, _)| place);
        for slash in slashes.collect::<Vec<_>>() {
            if !self.add_directory(root, at, &path[..slash])? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Adds a directory and those above it; whether all of them are.
    pub(crate) fn add_parents_and(&mut self, root: &Path, at: &[u8], path: &[u8]) -> Result<bool, WorktreeError> {
        Ok(self.add_parents(root, at, path)? && self.add_directory(root, at, path)?)
    }

    /// Adds a directory; whether it is one.
    pub(crate) fn add_directory(&mut self, root: &Path, at: &[u8], path: &[u8]) -> Result<bool, WorktreeError> {
        let whole = join(at, path);
        if let Some(known) = self.directories.get(&whole) {
            return Ok(*known);
        }
        let from = root.join(as_path(path));
        let found = match fs::symlink_metadata(&from) {
            Ok(metadata) => Some(metadata).filter(Metadata::is_dir),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
            Err(error) => return Err(WorktreeError::read(&from)(error)),
        };
        self.directories.insert(whole.clone(), found.is_some());
        if let Some(metadata) = &found {
            let node = Node::Directory { mode: metadata.mode() & 0o777 };
            self.put(whole, Mtime::default(), node, None);
        }
        Ok(found.is_some())
    }

    /// Adds an entry that is known.
    pub(crate) fn put(&mut self, path: Vec<u8>, mtime: Mtime, node: Node, from: Option<PathBuf>) {
        self.entries.insert(path.clone(), Entry { path: FileName(path), mtime, node, from });
    }

    /// Makes a file for the guest in `scratch`, and adds it.
    pub(crate) fn make(
        &mut self,
        scratch: &Path,
        path: Vec<u8>,
        mtime: Mtime,
        content: &[u8],
    ) -> Result<(), WorktreeError> {
        let from = self.scratch_file(scratch);
        fs::write(&from, content).map_err(WorktreeError::write(&from))?;
        self.put_file(path, mtime, from)
    }

    /// A name in `scratch` that nobody has yet.
    pub(crate) fn scratch_file(&mut self, scratch: &Path) -> PathBuf {
        self.made += 1;
        scratch.join(format!("made-{}", self.made))
    }

    /// Adds a file that was made for the guest.
    pub(crate) fn put_file(&mut self, path: Vec<u8>, mtime: Mtime, from: PathBuf) -> Result<(), WorktreeError> {
        let digest = || {
            let file = File::open(&from)?;
            let size = file.metadata()?.len();
            Ok::<_, io::Error>((size, tree::blob_id(file, size)?))
        };
        let (size, digest) = digest().map_err(WorktreeError::read(&from))?;
        self.put(path, mtime, Node::File { mode: 0o644, size, digest }, Some(from));
        Ok(())
    }

    /// Reads what is unread, and makes the tree. A directory's time is the latest of what is in it, so that it is the same again where
    /// nothing that is sent has changed.
    pub(crate) fn finish(mut self, cache: &mut StatCache) -> Result<(Tree, Vec<String>), WorktreeError> {
        let began = SystemTime::now();
        let unread = std::mem::take(&mut self.unread);
        for (file, digest) in unread.iter().zip(digests(&unread, cache)?) {
            cache.put(&file.path, Stat::of(&file.metadata), &digest, began);
            let node = Node::File { mode: file.metadata.mode() & 0o777, size: file.metadata.len(), digest };
            self.put(file.path.clone(), Mtime::of(&file.metadata), node, Some(file.from.clone()));
        }
        cache.save();
        let mut latest = HashMap::<Vec<u8>, Mtime>::new();
        for (path, entry) in self.entries.iter().rev() {
            let own = latest.get(path).copied().filter(|_| matches!(entry.node, Node::Directory { .. }));
            let time = own.unwrap_or(entry.mtime);
            if let Some(above) = parent(path) {
                let known = latest.entry(above.to_vec()).or_insert(time);
                *known = (*known).max(time);
            }
        }
        for (path, time) in latest {
            if let Some(entry) = self.entries.get_mut(&path) {
                entry.mtime = time;
            }
        }
        let tree = Tree::complete(self.entries.into_values().collect())
            .map_err(|error| WorktreeError::Unsupported(error.to_string()))?;
        Ok((tree, self.warnings))
    }
}

/// The digests of files, read by several threads where the cache does not know them.
fn digests(files: &[Unread], cache: &StatCache) -> Result<Vec<String>, WorktreeError> {
    let known: Vec<Option<&str>> = files.iter().map(|file| cache.get(&file.path, Stat::of(&file.metadata))).collect();
    let unknown: Vec<usize> =
        known.iter().enumerate().filter(|(_, known)| known.is_none()).map(|(index, _)| index).collect();
    let next = Mutex::new(unknown.iter());
    let readers = thread::available_parallelism().map_or(1, usize::from).min(READERS_MAX);
    let read = || {
        let mut done = Vec::new();
        loop {
            // Taken in pieces: a lock for each small file would cost more than reading it.
            let piece: Vec<usize> = match next.lock() {
                Ok(mut next) => next.by_ref().take(32).copied().collect(),
                Err(_) => Vec::new(),
            };
            if piece.is_empty() {
                return Ok(done);
            }
            for index in piece {
                done.push((index, digest(&files[index])?));
            }
        }
    };
    let results: Vec<Result<Vec<(usize, String)>, WorktreeError>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..readers).map(|_| scope.spawn(read)).collect();
        let panicked = |_| Err(WorktreeError::Unsupported("files could not be read".to_owned()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    });
    let mut digests: Vec<String> = known.into_iter().map(|known| known.unwrap_or_default().to_owned()).collect();
    for result in results {
        for (index, digest) in result? {
            digests[index] = digest;
        }
    }
    Ok(digests)
}

fn digest(file: &Unread) -> Result<String, WorktreeError> {
    let opened = File::options().read(true).open(&file.from).map_err(WorktreeError::read(&file.from))?;
    let before = opened.metadata().map_err(WorktreeError::read(&file.from))?;
    if !before.is_file() || Stat::of(&before) != Stat::of(&file.metadata) {
        return Err(WorktreeError::Changed(file.from.clone()));
    }
    let digest = tree::blob_id(&opened, before.len()).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => WorktreeError::Changed(file.from.clone()),
        _ => WorktreeError::read(&file.from)(error),
    })?;
    let after = opened.metadata().map_err(WorktreeError::read(&file.from))?;
    if Stat::of(&after) == Stat::of(&before) { Ok(digest) } else { Err(WorktreeError::Changed(file.from.clone())) }
}

/// A path below another, which may be empty.
pub(crate) fn join(at: &[u8], path: &[u8]) -> Vec<u8> {
    if at.is_empty() {
        return path.to_vec();
    }
    [at, path].join(&b'/')
}

/// The directory a path is in; none for those right below the root.
pub(crate) fn parent(path: &[u8]) -> Option<&[u8]> {
    path.iter().rposition(|byte| *byte == b'/').map(|slash| &path[..slash])
}

//! A **capture**: what a directory is at this moment, as a tree that can be sent.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use contract::{
    FileName,
    worktree::{About, History},
};
use tempfile::TempDir;
use tree::{Mtime, Tree};

use crate::{
    builder::{Builder, join},
    cache, commit,
    error::WorktreeError,
    git::records,
    gitdir::{Head, Making},
    index,
    repo::{Indexed, Repo, as_path},
    stat_cache::StatCache,
    submodules::Modules,
};

/// The longest origin that is told, in bytes.
const ORIGIN_MAX: usize = 1024;
/// The empty blob, which the index names for files that are only meant to be added, and which nobody may have written.
const EMPTY: (&str, &[u8]) = (
    "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391",
    &[0x78, 0x01, 0x4b, 0xca, 0xc9, 0x4f, 0x52, 0x30, 0x60, 0x00, 0x00, 0x09, 0xb0, 0x01, 0xf0],
);
/// Submodules within submodules are followed so deep.
pub(crate) const NESTED_MAX: usize = 16;

/// What to take.
#[derive(Clone, Debug)]
pub struct Options {
    /// How much of a repository's history.
    pub history: History,
    /// What git ignores and shall go along nevertheless, as patterns of `.gitignore`.
    pub include_ignored: Vec<String>,
    /// Index and files as they are; else those of HEAD.
    pub dirty: bool,
    /// Where packs and what is known of files are kept between captures.
    pub cache: PathBuf,
}

/// An index, as a file, with the tree it holds; none where there is none.
type Staged = Option<(PathBuf, String)>;

/// What was taken.
#[derive(Debug)]
pub struct Captured {
    /// The tree, to be sent while this is alive.
    pub tree: Tree,
    /// What it was taken from; the base is told by a [`crate::Snapshot`].
    pub about: About,
    /// What was left out, at most 64 lines.
    pub warnings: Vec<String>,
    /// The top of the directory or worktree it was taken from.
    pub root: PathBuf,
    /// The repository; none of a plain directory.
    pub repo: Option<Repo>,
    /// When HEAD's commit was made, in seconds since 1970; 0 where there is none.
    pub time: i64,
    /// Paths of the repository itself (not of submodules) that differ from HEAD's to git, sorted.
    pub(crate) dirty: Vec<Vec<u8>>,
    /// Paths of the repository itself that git ignores, and that went along by a pattern.
    pub(crate) ignored: BTreeSet<Vec<u8>>,
    /// The index as it was sent.
    pub(crate) staged: Staged,
    /// Where its packs are kept, and its submodules'.
    pub(crate) caches: Vec<PathBuf>,
    /// Holds the files that were made, as long as they may be sent.
    pub(crate) _scratch: TempDir,
}

/// Captures a directory: of a repository all of it, even if `dir` is only a part; of a directory in none all that is there.
///
/// # Errors
/// See the variants; git's own words where it refused something.
pub fn capture(dir: &Path, options: &Options) -> Result<Captured, WorktreeError> {
    let dir = fs::canonicalize(dir).map_err(WorktreeError::read(dir))?;
    if !dir.is_dir() {
        return Err(WorktreeError::Unsupported(format!("{} is no directory", dir.display())));
    }
    match Repo::find(&dir)? {
        Some(repo) if repo.bare => {
            Err(WorktreeError::Unsupported(format!("{} is a bare repository, which has no files", dir.display())))
        }
        // What its repository ignores is none of it.
        Some(repo)
            if repo.top != dir
                && repo
                    .git
                    .ask(
                        &["check-ignore", "-q", "--"]
                            .map(std::ffi::OsStr::new)
                            .into_iter()
                            .chain([dir.as_os_str()])
                            .collect::<Vec<_>>(),
                    )?
                    .is_some() =>
        {
            capture_plain(&dir, options)
        }
        Some(repo) => capture_repo(repo, options),
        None => capture_plain(&dir, options),
    }
}

/// Captures a directory that is taken as it is. Git directories within are left out: they hold settings of this machine.
///
/// # Errors
/// See the variants.
pub fn capture_plain(dir: &Path, options: &Options) -> Result<Captured, WorktreeError> {
    let mut cache = StatCache::load(&options.cache, dir);
    let mut out = Builder::default();
    let mut waiting = vec![Vec::new()];
    while let Some(at) = waiting.pop() {
        let path = dir.join(as_path(&at));
        for found in fs::read_dir(&path).map_err(WorktreeError::read(&path))? {
            let found = found.map_err(WorktreeError::read(&path))?;
            let below = join(&at, found.file_name().as_encoded_bytes());
            if found.file_name() == ".git" {
                out.warn(format!("{} was left out: prepare that repository by itself", as_path(&below).display()));
            } else if found.file_type().map_err(WorktreeError::read(&path))?.is_dir() {
                if out.add_directory(dir, b"", &below)? {
                    waiting.push(below);
                }
            } else {
                out.add(dir, b"", &below)?;
            }
        }
    }
    let (tree, warnings) = out.finish(&mut cache)?;
    let about = About { origin: origin(dir), ..About::default() };
    let scratch = scratch(&options.cache)?;
    Ok(Captured {
        tree,
        about,
        warnings,
        root: dir.to_owned(),
        repo: None,
        time: 0,
        dirty: Vec::new(),
        ignored: BTreeSet::new(),
        staged: None,
        caches: vec![options.cache.clone()],
        _scratch: scratch,
    })
}

fn capture_repo(repo: Repo, options: &Options) -> Result<Captured, WorktreeError> {
    let mut cache = StatCache::load(&options.cache, &repo.top);
    let scratch = scratch(&options.cache)?;
    let head = Head::of(&repo)?;
    let mut out = Builder::default();
    let (dirty, (staged, ignored)) = if options.dirty {
        let part = Part { repo: &repo, head: &head, at: b"", home: b".git".to_vec(), depth: 0 };
        let taken = part.take(options, scratch.path(), &mut out)?;
        (dirty(&repo, &head)?, taken)
    } else {
        let commit = head.commit.clone();
        let commit =
            commit.ok_or_else(|| WorktreeError::Absent(format!("{} has no commit yet", repo.top.display())))?;
        let modules = Modules::none("submodules are not taken from commits of a worktree");
        let files =
            commit::Files { repo: &repo, head: &head, commit: &commit, at: b"", home: b".git", modules: &modules };
        files.take(options, commit::BYTES_MAX, scratch.path(), &mut out)?;
        (Vec::new(), (None, BTreeSet::new()))
    };
    let (tree, warnings) = out.finish(&mut cache)?;
    let about = about(&origin(&repo.top), &head, options.history);
    Ok(Captured {
        tree,
        about,
        warnings,
        root: repo.top.clone(),
        time: head.time,
        repo: Some(repo),
        dirty,
        ignored,
        staged,
        caches: vec![options.cache.clone()],
        _scratch: scratch,
    })
}

/// What is told of a repository.
pub(crate) fn about(origin: &str, head: &Head, history: History) -> About {
    About {
        origin: origin.to_owned(),
        head: head.commit.clone(),
        branch: head.branch_name().map(str::to_owned),
        upstream: head.upstream.as_ref().map(|it| it.short.clone()),
        base: None,
        history: Some(history),
    }
}

/// Where made files live as long as a capture: in the cache, so that packs can be linked.
pub(crate) fn scratch(cache: &Path) -> Result<TempDir, WorktreeError> {
    let dir = cache.join("scratch");
    cache::make(&dir)?;
    tempfile::Builder::new().prefix("capture-").tempdir_in(&dir).map_err(WorktreeError::write(&dir))
}

fn origin(dir: &Path) -> String {
    let text = dir.to_string_lossy();
    let end = (0..=text.len().min(ORIGIN_MAX)).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    text[..end].to_owned()
}

/// What git takes for changed beside HEAD.
fn dirty(repo: &Repo, head: &Head) -> Result<Vec<Vec<u8>>, WorktreeError> {
    let Some(commit) = &head.commit else { return Ok(Vec::new()) };
    let out =
        repo.git.run(&["diff-index", "--name-only", "-z", "--no-renames", "--ignore-submodules=all", commit, "--"])?;
    let mut paths: Vec<Vec<u8>> = records(&out).map(<[u8]>::to_vec).collect();
    paths.sort_unstable();
    Ok(paths)
}

/// A repository at its place in the tree: the whole, or a submodule of it.
struct Part<'a> {
    repo: &'a Repo,
    head: &'a Head,
    /// Its files' place.
    at: &'a [u8],
    /// Its git directory's place.
    home: Vec<u8>,
    depth: usize,
}

impl Part<'_> {
    /// Takes index, files and submodules as they are; gives the index, as a file, with its tree, and the paths that git ignores and a
    /// pattern names.
    fn take(
        &self,
        options: &Options,
        scratch: &Path,
        out: &mut Builder,
    ) -> Result<(Staged, BTreeSet<Vec<u8>>), WorktreeError> {
        self.repo.refuse_unfinished()?;
        let indexed = self.repo.index()?;
        for entry in indexed.iter().filter(|entry| entry.mode != 0o160_000) {
            out.add(&self.repo.top, self.at, &entry.path)?;
        }
        let untracked = self.repo.untracked()?;
        let ignored: BTreeSet<_> =
            self.repo.named(&options.include_ignored)?.into_iter().filter(|path| !untracked.contains(path)).collect();
        for path in untracked.iter().chain(&ignored) {
            match path.strip_suffix(b"/") {
                Some(inner) => {
                    let whole = join(self.at, inner);
                    out.warn(format!(
                        "{} was left out: it is a repository and no submodule",
                        as_path(&whole).display()
                    ));
                }
                None => {
                    out.add(&self.repo.top, self.at, path)?;
                }
            }
        }
        for entry in indexed.iter().filter(|entry| entry.mode == 0o160_000) {
            self.submodule(entry, options, scratch, out)?;
        }
        let staged = match options.history {
            History::None => None,
            _ => self.git_dir(&indexed, options, scratch, out)?,
        };
        Ok((staged, ignored))
    }

    fn git_dir(
        &self,
        indexed: &[Indexed],
        options: &Options,
        scratch: &Path,
        out: &mut Builder,
    ) -> Result<Staged, WorktreeError> {
        let copied = out.scratch_file(scratch);
        let index = if index::copy(self.repo, &copied)? {
            index::doubt(self.repo, &copied, indexed)?;
            let metadata = fs::metadata(&copied).map_err(WorktreeError::read(&copied))?;
            Some((copied.clone(), Mtime::of(&metadata)))
        } else {
            None
        };
        if indexed.iter().any(|entry| entry.id == EMPTY.0) {
            let (fan, name) = EMPTY.0.split_at(2);
            let path = join(&self.home, format!("objects/{fan}/{name}").as_bytes());
            out.make(scratch, path, Mtime { secs: self.head.time, nanos: 0 }, EMPTY.1)?;
        }
        let objects = out.scratch_file(scratch);
        let staged = match &index {
            Some((file, _)) if !indexed.is_empty() => {
                fs::create_dir(&objects).map_err(WorktreeError::write(&objects))?;
                // Of a copy: git notes in it which trees it knows.
                let copy = out.scratch_file(scratch);
                fs::copy(file, &copy).map_err(WorktreeError::write(&copy))?;
                let git = self.repo.with_objects(&objects).env("GIT_INDEX_FILE", &copy);
                Some((git.text(&["write-tree"])?, objects))
            }
            _ => None,
        };
        let known = staged.as_ref().map(|(tree, _): &(String, PathBuf)| (copied, tree.clone()));
        let worktree = (!self.at.is_empty()).then(|| up(&self.home) + &String::from_utf8_lossy(self.at));
        let home = String::from_utf8_lossy(&self.home);
        let seen = if self.at.is_empty() { home.into_owned() } else { up(self.at) + &home };
        let Self { repo, head, .. } = *self;
        let making = Making {
            repo,
            head,
            history: options.history,
            index,
            staged,
            home: &self.home,
            worktree,
            seen,
            modules: &Modules::none(""),
            scratch,
            cache: &options.cache,
        };
        making.build(out)?;
        Ok(known)
    }

    /// Takes a submodule, with a git directory of its own below the one of what it is in. One that was never initialised is an empty directory.
    fn submodule(
        &self,
        entry: &Indexed,
        options: &Options,
        scratch: &Path,
        out: &mut Builder,
    ) -> Result<(), WorktreeError> {
        let dir = self.repo.top.join(as_path(&entry.path));
        if !out.add_parents_and(&self.repo.top, self.at, &entry.path)? || !dir.join(".git").exists() {
            return Ok(());
        }
        let Some(inner) = Repo::find(&dir)?.filter(|inner| fs::canonicalize(&dir).is_ok_and(|dir| dir == inner.top))
        else {
            return Ok(());
        };
        if self.depth >= NESTED_MAX {
            return Err(WorktreeError::Unsupported(format!(
                "{}: submodules are nested deeper than {NESTED_MAX}",
                dir.display()
            )));
        }
        let head = Head::of(&inner)?;
        let at = join(self.at, &entry.path);
        let home = join(&self.home, &[b"modules/", &self.module_name(&inner, entry)[..]].concat());
        if options.history != History::None {
            let link = format!("gitdir: {}{}\n", up(&at), FileName(home.clone()));
            out.make(scratch, join(&at, b".git"), Mtime { secs: head.time, nanos: 0 }, link.as_bytes())?;
        }
        Part { repo: &inner, head: &head, at: &at, home, depth: self.depth + 1 }.take(options, scratch, out)?;
        Ok(())
    }

    /// The name of a submodule: where its git directory is below the others', else its path.
    fn module_name(&self, inner: &Repo, entry: &Indexed) -> Vec<u8> {
        let below = |dir: &Path| {
            inner.git_dir.strip_prefix(dir.join("modules")).ok().map(|it| it.as_os_str().as_encoded_bytes().to_vec())
        };
        below(&self.repo.git_dir).or_else(|| below(&self.repo.common)).unwrap_or_else(|| entry.path.clone())
    }
}

/// From a directory back to where its path begins: `../../`.
pub(crate) fn up(path: &[u8]) -> String {
    "../".repeat(path.split(|byte| *byte == b'/').count())
}

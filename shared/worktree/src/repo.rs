//! A **repository** as its files lie: where the worktree, its git directory and the shared one are, and what is going on in it.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    io::{BufRead, Read},
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use contract::worktree::ENTRIES_MAX;

use crate::{
    error::WorktreeError,
    git::{Git, records},
};

/// What git leaves in a worktree's directory while something is under way, what that is, and how it ends.
const IN_PROGRESS: [(&str, &str, &str); 5] = [
    ("MERGE_HEAD", "a merge", "git merge --continue or --abort"),
    ("rebase-merge", "a rebase", "git rebase --continue or --abort"),
    ("rebase-apply", "a rebase or am", "git rebase --continue, git am --continue, or --abort"),
    ("CHERRY_PICK_HEAD", "a cherry-pick", "git cherry-pick --continue or --abort"),
    ("REVERT_HEAD", "a revert", "git revert --continue or --abort"),
];

/// The most bytes of a list of files.
const LIST_BYTES: u64 = 512 << 20;

/// A repository with a worktree, or a bare one.
#[derive(Clone, Debug)]
pub struct Repo {
    /// The top of the worktree; of a bare repository its own directory.
    pub top: PathBuf,
    /// This worktree's git directory.
    pub git_dir: PathBuf,
    /// The git directory that all worktrees share.
    pub common: PathBuf,
    /// Whether there is no worktree.
    pub bare: bool,
    /// Git, run at the top.
    pub git: Git,
}

/// One entry of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indexed {
    /// As git has modes: 0o100644, 0o100755, 0o120000 or 0o160000.
    pub mode: u32,
    /// Its object.
    pub id: String,
    /// Its path.
    pub path: Vec<u8>,
}

impl Repo {
    /// The repository a directory is in; nothing where it is in none.
    ///
    /// # Errors
    /// Git does not work, or does not trust whose it is.
    pub fn find(dir: &Path) -> Result<Option<Self>, WorktreeError> {
        let git = Git::at(dir);
        let facts =
            match git.text(&["rev-parse", "--is-bare-repository", "--is-inside-work-tree", "--show-object-format"]) {
                Ok(facts) => facts,
                Err(WorktreeError::Git { said, .. }) if said.contains("not a git repository") => return Ok(None),
                Err(error) => return Err(error),
            };
        let [bare, inside, format] = facts.lines().collect::<Vec<_>>()[..] else {
            return Err(WorktreeError::Git { what: "rev-parse".to_owned(), said: format!("it said {facts:?}") });
        };
        let bare = bare == "true";
        if !bare && inside != "true" {
            let message = format!("{} is inside of a repository's .git directory", dir.display());
            return Err(WorktreeError::Unsupported(message));
        }
        if format != "sha1" {
            let message =
                format!("{} is a repository with {format} object names; only sha1 ones can be taken", dir.display());
            return Err(WorktreeError::Unsupported(message));
        }
        let git_dir = path(&git, &["rev-parse", "--absolute-git-dir"])?;
        let common = path(&git, &["rev-parse", "--path-format=absolute", "--git-common-dir"])?;
        let top = if bare { git_dir.clone() } else { path(&git, &["rev-parse", "--show-toplevel"])? };
        Ok(Some(Self { git: Git::at(&top), top, git_dir, common, bare }))
    }

    /// Git that writes objects into another directory and finds those of the repository too.
    pub(crate) fn with_objects(&self, dir: &Path) -> Git {
        let own = self.common.join("objects");
        self.git.clone().env("GIT_OBJECT_DIRECTORY", dir).env("GIT_ALTERNATE_OBJECT_DIRECTORIES", quoted(&own))
    }

    /// The commit a name leads to, if it leads to one.
    ///
    /// # Errors
    /// Git does not work.
    pub fn commit(&self, name: &str) -> Result<Option<String>, WorktreeError> {
        self.git.ask(&["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{name}^{{commit}}")])
    }

    /// A setting as git would use it.
    ///
    /// # Errors
    /// Git does not work.
    pub fn setting(&self, key: &str) -> Result<Option<String>, WorktreeError> {
        self.git.ask(&["config", "--get", key])
    }

    /// The branch that is checked out, as `refs/heads/…`; nothing when HEAD is detached.
    ///
    /// # Errors
    /// Git does not work.
    pub fn branch(&self) -> Result<Option<String>, WorktreeError> {
        Ok(self.git.ask(&["symbolic-ref", "--quiet", "HEAD"])?.filter(|name| name.starts_with("refs/heads/")))
    }

    /// Refuses a worktree in which something was begun that ends elsewhere than in its files.
    ///
    /// # Errors
    /// It is so.
    pub fn refuse_unfinished(&self) -> Result<(), WorktreeError> {
        match IN_PROGRESS.iter().find(|(mark, ..)| self.git_dir.join(mark).exists()) {
            Some((_, what, command)) => Err(WorktreeError::InProgress { what, command, at: self.top.clone() }),
            None => Ok(()),
        }
    }

    /// The index.
    ///
    /// # Errors
    /// It holds conflicts, or git does not work.
    pub fn index(&self) -> Result<Vec<Indexed>, WorktreeError> {
        let out = self.git.run(&["ls-files", "--stage", "-z"])?;
        let (mut entries, mut unmerged) = (Vec::new(), Vec::new());
        for record in records(&out) {
            let (entry, stage) = indexed(record).ok_or_else(|| odd("ls-files", record))?;
            if stage != "0" {
                unmerged.push(as_path(&entry.path));
            } else {
                entries.push(entry);
            }
        }
        unmerged.dedup();
        if unmerged.is_empty() {
            Ok(entries)
        } else {
            Err(WorktreeError::Unmerged { at: self.top.clone(), paths: unmerged })
        }
    }

    /// All files of a commit or tree.
    ///
    /// # Errors
    /// It is not there, or git does not work.
    pub fn tree(&self, name: &str) -> Result<Vec<Indexed>, WorktreeError> {
        tree(&self.git, name)
    }

    /// What is in the worktree and neither in the index nor ignored. Repositories of their own end in a slash.
    ///
    /// # Errors
    /// Git does not work.
    pub fn untracked(&self) -> Result<BTreeSet<Vec<u8>>, WorktreeError> {
        let out = self.git.run(&["ls-files", "--others", "-z", "--exclude-standard"])?;
        Ok(records(&out).map(<[u8]>::to_vec).collect())
    }

    /// What is not in the index and `patterns` (as `.gitignore` has them) name, whether git ignores it or not.
    ///
    /// # Errors
    /// Git does not work.
    pub fn named(&self, patterns: &[String]) -> Result<BTreeSet<Vec<u8>>, WorktreeError> {
        if patterns.is_empty() {
            return Ok(BTreeSet::new());
        }
        let mut args = vec!["ls-files".to_owned(), "--others".into(), "--ignored".into(), "-z".into()];
        args.extend(patterns.iter().map(|pattern| format!("--exclude={pattern}")));
        let out = self.git.run(&args)?;
        Ok(records(&out).map(<[u8]>::to_vec).collect())
    }
}

/// All files of a commit or tree.
pub(crate) fn tree(git: &Git, name: &str) -> Result<Vec<Indexed>, WorktreeError> {
    list(git, &["ls-tree", "-r", "-z", "--full-tree", "--end-of-options", name], |_| Ok(()))
}

/// All files of a commit or tree that together have no more than `most` bytes.
pub(crate) fn tree_within(git: &Git, name: &str, most: u64) -> Result<Vec<Indexed>, WorktreeError> {
    let mut bytes = 0u64;
    list(git, &["ls-tree", "-r", "-l", "-z", "--full-tree", "--end-of-options", name], |size| {
        bytes = bytes.saturating_add(size);
        let over = || WorktreeError::TooMuch(format!("the files of {name} have more than {most} bytes"));
        if bytes > most { Err(over()) } else { Ok(()) }
    })
}

/// Takes a list as git says it, and no more of it than a tree may have entries: a few objects that name each other many times are a list
/// without an end. Each file's size is `weigh`ed, where git tells it.
fn list(
    git: &Git,
    args: &[&str],
    mut weigh: impl FnMut(u64) -> Result<(), WorktreeError> + Send,
) -> Result<Vec<Indexed>, WorktreeError> {
    let mut refused = None;
    let all = |from: &mut dyn BufRead| {
        let (mut found, mut bytes, mut record) = (Vec::new(), 0, Vec::new());
        loop {
            record.clear();
            // What ends early git answers for.
            let count = (&mut *from).take(LIST_BYTES).read_until(0, &mut record).unwrap_or(0) as u64;
            bytes += count;
            if count == 0 {
                return found;
            }
            let taken = if bytes > LIST_BYTES || found.len() as u64 >= ENTRIES_MAX {
                Err(WorktreeError::TooMuch(format!("it has more than {ENTRIES_MAX} files, or too long names")))
            } else {
                record.pop();
                listed(&record).ok_or_else(|| odd("ls-tree", &record)).and_then(|(entry, size)| {
                    weigh(size)?;
                    Ok(entry)
                })
            };
            match taken {
                Ok(entry) => found.push(entry),
                Err(error) => {
                    refused = Some(error);
                    return found;
                }
            }
        }
    };
    let listed = git.converse(args, |_| Ok(()), all);
    // That nobody listened any more is what git says then.
    match refused {
        Some(error) => Err(error),
        None => Ok(listed?.1),
    }
}

fn path(git: &Git, args: &[&str]) -> Result<PathBuf, WorktreeError> {
    let mut out = git.run(args)?;
    if out.last() == Some(&b'\n') {
        out.pop();
    }
    Ok(OsString::from_vec(out).into())
}

pub(crate) fn as_path(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

/// A path in a list that colons part, as git reads it.
fn quoted(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_encoded_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b':' | b'"')) {
        return path.into();
    }
    let mut out = vec![b'"'];
    for byte in bytes {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out.push(b'"');
    OsString::from_vec(out)
}

fn odd(what: &str, record: &[u8]) -> WorktreeError {
    WorktreeError::Git { what: what.to_owned(), said: format!("it said {:?}", String::from_utf8_lossy(record)) }
}

/// `<mode> <id> <stage>\t<path>`
fn indexed(record: &[u8]) -> Option<(Indexed, String)> {
    let (words, path) = split(record)?;
    let [mode, id, stage] = words.split(' ').collect::<Vec<_>>()[..] else { return None };
    Some((Indexed { mode: u32::from_str_radix(mode, 8).ok()?, id: id.to_owned(), path }, stage.to_owned()))
}

/// `<mode> <type> <id>\t<path>`, or `<mode> <type> <id> <size>\t<path>` with `-` for the size of what has none.
fn listed(record: &[u8]) -> Option<(Indexed, u64)> {
    let (words, path) = split(record)?;
    let mut words = words.split_ascii_whitespace();
    let (mode, _, id) = (words.next()?, words.next()?, words.next()?);
    let size = words.next().filter(|size| *size != "-").map_or(Some(0), |size| size.parse().ok())?;
    Some((Indexed { mode: u32::from_str_radix(mode, 8).ok()?, id: id.to_owned(), path }, size))
}

fn split(record: &[u8]) -> Option<(String, Vec<u8>)> {
    let tab = record.iter().position(|byte| *byte == b'\t')?;
    Some((String::from_utf8(record[..tab].to_vec()).ok()?, record[tab + 1..].to_vec()))
}

//! A **snapshot**: the exact content of what was sent, as a commit that `refs/warren/<vm>/…` keep, beside which changes are told later.
//!
//! Where the files are HEAD's to the byte, it is HEAD's commit itself. Else it comes after HEAD: a commit of what git shows as changed, and one
//! of what it does not show: files that only differ from their blobs by filters and line endings, that it ignores, that a sparse checkout leaves
//! out, or that are a submodule's.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::Path,
};

use contract::{
    name::VmName,
    worktree::{DEFAULT_PATH, Node},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    blobs, cache,
    capture::Captured,
    error::WorktreeError,
    fast_import::{self, Content, Making, Put},
    git::Git,
    packs::is_id,
    repo::{self, Indexed},
};

/// What was sent, as commits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// HEAD's commit then; none before the first, or of a plain directory.
    #[serde(default)]
    pub head: Option<String>,
    /// HEAD's files with what git showed as changed.
    pub dirty: String,
    /// Exactly what was sent.
    pub commit: String,
    /// The tree that was staged: a commit in the VM may be of it, and sends what it was not sent.
    #[serde(default)]
    pub staged: Option<String>,
}

/// The references of one workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct References {
    vm: String,
    suffix: String,
}

impl References {
    /// Those of a VM's workspace.
    pub fn new(vm: &VmName, path: &str) -> Self {
        let hash = || format!("-{}", &hex::encode(Sha256::digest(path))[..8]);
        Self { vm: vm.to_string(), suffix: if path == DEFAULT_PATH { String::new() } else { hash() } }
    }

    /// What was sent last.
    pub fn base(&self) -> String {
        format!("refs/warren/{}/base{}", self.vm, self.suffix)
    }

    /// What is being sent.
    pub fn pending(&self) -> String {
        format!("refs/warren/{}/pending{}", self.vm, self.suffix)
    }

    /// What was staged when that was sent.
    pub fn staged(&self) -> String {
        format!("refs/warren/{}/staged{}", self.vm, self.suffix)
    }

    /// What was taken out last.
    pub fn exported(&self) -> String {
        format!("refs/warren/{}/exported{}", self.vm, self.suffix)
    }

    /// The next free `refs/warren/<vm>/<n>`.
    ///
    /// # Errors
    /// Git does not work.
    pub fn next(&self, git: &Git) -> Result<String, WorktreeError> {
        let prefix = format!("refs/warren/{}/", self.vm);
        let said = git.text(&["for-each-ref", "--format=%(refname)", &prefix])?;
        let last = said.lines().filter_map(|name| name.strip_prefix(&prefix)?.parse::<u64>().ok()).max().unwrap_or(0);
        Ok(format!("{prefix}{}", last + 1))
    }

    /// Makes what is pending the base: it was sent.
    ///
    /// # Errors
    /// Git does not work.
    pub fn settle(&self, git: &Git, base: &Base) -> Result<(), WorktreeError> {
        git.run(&["update-ref", &self.base(), &base.commit])?;
        match &base.staged {
            Some(tree) => git.run(&["update-ref", &self.staged(), tree])?,
            None => git.run(&["update-ref", "-d", &self.staged()])?,
        };
        git.run(&["update-ref", "-d", &self.pending()])?;
        Ok(())
    }

    /// Keeps a snapshot as pending, as when what was pending after it did not come to be.
    ///
    /// # Errors
    /// Git does not work.
    pub fn keep(&self, git: &Git, base: &Base) -> Result<(), WorktreeError> {
        git.run(&["update-ref", &self.pending(), &base.commit]).map(drop)
    }

    /// Removes the references of this workspace; with `all` those of commits that came back from the VM, too.
    ///
    /// # Errors
    /// Git does not work.
    pub fn remove(&self, git: &Git, all: bool) -> Result<(), WorktreeError> {
        let prefix = format!("refs/warren/{}/", self.vm);
        let said = git.text(&["for-each-ref", "--format=%(refname)", &prefix])?;
        let own = [self.base(), self.staged(), self.pending(), self.exported()];
        for name in said.lines().filter(|name| all || own.iter().any(|own| own == name)) {
            git.run(&["update-ref", "-d", name])?;
        }
        Ok(())
    }
}

/// A bare repository in the user's state directory, for snapshots of what is in no repository.
///
/// # Errors
/// It cannot be made.
pub fn private_repository(dir: &Path) -> Result<Git, WorktreeError> {
    cache::make(dir)?;
    let git = Git::at(dir);
    if !dir.join("HEAD").exists() {
        git.run(&["init", "--quiet", "--bare", "--template=", "--object-format=sha1", "."])?;
    }
    Ok(git)
}

/// Takes snapshots into a repository.
pub struct Snapshot<'a> {
    /// The worktree's own, or a private one.
    pub git: &'a Git,
    /// How they are kept.
    pub references: &'a References,
}

/// What differs from a tree.
#[derive(Default)]
struct Differs {
    deletes: Vec<Vec<u8>>,
    puts: Vec<Put>,
}

impl Snapshot<'_> {
    /// Keeps what was captured, as pending.
    ///
    /// # Errors
    /// A file changed since it was captured ([`WorktreeError::Changed`]: capture anew), or git does not work.
    pub fn take(&self, captured: &Captured) -> Result<Base, WorktreeError> {
        let staged = self.staged(captured)?;
        let head = captured.about.head.clone().filter(|_| captured.repo.is_some());
        let before = match (&captured.repo, &head) {
            (Some(repo), Some(head)) => repo.tree(head)?,
            _ => Vec::new(),
        };
        let (dirty, rest) = self.differences(captured, &before)?;
        let mut commits = Vec::new();
        for (differs, message) in [(dirty, "What was changed\n"), (rest, "What was sent, as it lay\n")] {
            if !differs.deletes.is_empty() || !differs.puts.is_empty() || (head.is_none() && commits.is_empty()) {
                let Differs { deletes, puts } = differs;
                let parent = head.clone().filter(|_| commits.is_empty());
                commits.push(Making { parent, message, time: captured.time, deletes, puts });
            }
        }
        let first_is_dirty = commits.first().is_some_and(|first| first.message == "What was changed\n");
        if commits.is_empty() {
            let head = head.unwrap_or_default();
            self.git.run(&["update-ref", &self.references.pending(), &head])?;
            return Ok(Base { head: Some(head.clone()), dirty: head.clone(), commit: head, staged });
        }
        let ids = fast_import::import(self.git, &self.references.pending(), commits)?;
        let last = ids.last().cloned().unwrap_or_default();
        let dirty = if first_is_dirty { ids.first().cloned() } else { head.clone() };
        Ok(Base { dirty: dirty.unwrap_or_else(|| last.clone()), head, commit: last, staged })
    }

    /// Has the tree of what was staged, which may be in no commit, in the repository too.
    fn staged(&self, captured: &Captured) -> Result<Option<String>, WorktreeError> {
        let Some((index, tree)) = &captured.staged else { return Ok(None) };
        // Of a copy, as git notes in it what it knows.
        let copy = index.with_extension("staged");
        fs::copy(index, &copy).map_err(WorktreeError::write(&copy))?;
        let made = self.git.clone().env("GIT_INDEX_FILE", &copy).text(&["write-tree"])?;
        if made == *tree { Ok(Some(made)) } else { Err(WorktreeError::Changed(copy)) }
    }

    fn differences(&self, captured: &Captured, before: &[Indexed]) -> Result<(Differs, Differs), WorktreeError> {
        let before: BTreeMap<&[u8], &Indexed> = before.iter().map(|it| (&it.path[..], it)).collect();
        let modules: HashSet<&[u8]> =
            before.values().filter(|it| it.mode == 0o160_000).map(|it| &it.path[..]).collect();
        let (mut dirty, mut rest) = (Differs::default(), Differs::default());
        let mut seen = HashSet::new();
        let is_dirty = |path: &[u8]| captured.dirty.binary_search_by(|it| it[..].cmp(path)).is_ok();
        for entry in captured.tree.entries() {
            let path = &entry.path.0[..];
            if path.split(|byte| *byte == b'/').any(|name| name == b".git") {
                continue;
            }
            let (mode, id, content) = match &entry.node {
                Node::Directory { .. } => continue,
                Node::File { mode, size, digest } => {
                    let from = entry.from.clone().unwrap_or_default();
                    (file_mode(*mode), digest.clone(), Content::File(from, *size, digest.clone()))
                }
                Node::Symlink { target } => {
                    let id = tree::blob_id(&target.0[..], target.0.len() as u64).unwrap_or_default();
                    (0o120_000, id, Content::Bytes(target.0.clone()))
                }
            };
            seen.insert(path);
            if before.get(path).is_some_and(|it| it.mode == mode && it.id == id) {
                continue;
            }
            // What git ignores it would not show either.
            let shown = if before.contains_key(path) { is_dirty(path) } else { !captured.ignored.contains(path) };
            let of = if shown && !is_below(path, &modules) { &mut dirty } else { &mut rest };
            of.puts.push(Put { path: path.to_vec(), mode, content });
        }
        for it in before.values().filter(|it| it.mode != 0o160_000 && !seen.contains(&it.path[..])) {
            // Git does not miss what a sparse checkout leaves out.
            let of = if is_dirty(&it.path) { &mut dirty } else { &mut rest };
            of.deletes.push(it.path.clone());
        }
        self.reuse(&mut dirty)?;
        self.reuse(&mut rest)?;
        Ok((dirty, rest))
    }

    /// Names objects that are there instead of writing them again.
    fn reuse(&self, differs: &mut Differs) -> Result<(), WorktreeError> {
        let files: Vec<_> = differs.puts.iter_mut().filter(|put| matches!(put.content, Content::File(..))).collect();
        let id = |put: &Put| if let Content::File(_, _, id) = &put.content { id.clone() } else { String::new() };
        let ids: Vec<String> = files.iter().map(|put| id(put)).collect();
        for ((put, id), present) in files.into_iter().zip(&ids).zip(blobs::present(self.git, &ids)?) {
            if present && is_id(id) {
                put.content = Content::Object(id.clone());
            }
        }
        Ok(())
    }
}

/// Whether a path is in one of some directories.
pub(crate) fn is_below(path: &[u8], directories: &HashSet<&[u8]>) -> bool {
    let mut slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(place, _)| place);
    slashes.any(|slash| directories.contains(&path[..slash]))
}

/// A file's mode as git has it.
pub(crate) fn file_mode(mode: u32) -> u32 {
    if mode & 0o100 == 0 { 0o100_644 } else { 0o100_755 }
}

/// The files of a commit, by path.
pub(crate) fn files_of(git: &Git, commit: &str) -> Result<BTreeMap<Vec<u8>, Indexed>, WorktreeError> {
    Ok(repo::tree(git, commit)?.into_iter().map(|it| (it.path.clone(), it)).collect())
}

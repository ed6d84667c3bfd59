//! **Changes** that came out of a VM, beside the snapshot they are told from: a commit whose files are the VM's, and patches of it.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
};

use contract::worktree::{Change, ChangeList, Node};

use crate::{
    error::WorktreeError,
    fast_import::{self, Content, Making, Put},
    git::Git,
    repo::{Indexed, as_path},
    snapshot::{Base, References, file_mode, files_of},
};

/// What came out: the list, and where [`tree::read_export`] put the files.
#[derive(Clone, Copy, Debug)]
pub struct Export<'a> {
    /// What changed.
    pub changes: &'a ChangeList,
    /// The directory that holds `tree/` and `git/objects/`.
    pub quarantine: &'a Path,
}

/// Changes that were found to fit their snapshot.
#[derive(Clone, Debug)]
pub struct Taken {
    /// A commit whose files are the VM's; the snapshot's own where nothing changed.
    pub commit: String,
    /// The snapshot's files.
    pub(crate) before: BTreeMap<Vec<u8>, Indexed>,
}

impl Export<'_> {
    /// Where the content of a changed file is.
    pub(crate) fn file(&self, change: &Change) -> PathBuf {
        self.quarantine.join("tree").join(change.path.as_path())
    }

    /// Makes a commit of the changes on top of their snapshot, kept by the references.
    ///
    /// # Errors
    /// The list does not fit the snapshot, which no guest-agent would send; or git does not work.
    pub fn take(&self, git: &Git, references: &References, base: &Base) -> Result<Taken, WorktreeError> {
        let before = files_of(git, &base.commit)?;
        let (mut deletes, mut puts) = (Vec::new(), Vec::new());
        for change in &self.changes.changes {
            check(change, &before)?;
            let path = change.path.0.clone();
            match &change.after {
                Some(Node::File { mode, size, digest }) => {
                    let content = Content::File(self.file(change), *size, digest.clone());
                    puts.push(Put { path, mode: file_mode(*mode), content });
                }
                Some(Node::Symlink { target }) => {
                    puts.push(Put { path, mode: 0o120_000, content: Content::Bytes(target.0.clone()) });
                }
                // What is in a directory is told path by path.
                None | Some(Node::Directory { .. }) => {
                    if matches!(change.before, Some(Node::File { .. } | Node::Symlink { .. })) {
                        deletes.push(path);
                    }
                }
            }
        }
        if deletes.is_empty() && puts.is_empty() {
            git.run(&["update-ref", &references.exported(), &base.commit])?;
            return Ok(Taken { commit: base.commit.clone(), before });
        }
        let parent = Some(base.commit.clone());
        let making = Making { parent, message: "What was changed in the VM\n", time: now(), deletes, puts };
        let ids = fast_import::import(git, &references.exported(), vec![making])?;
        let commit = ids.into_iter().next().unwrap_or_default();
        Ok(Taken { commit, before })
    }
}

pub(crate) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(0)
}

/// Whether a change may be one, and tells of what was sent.
fn check(change: &Change, before: &BTreeMap<Vec<u8>, Indexed>) -> Result<(), WorktreeError> {
    let refuse = |why: &str| Err(WorktreeError::Hostile(format!("{}: {why}", as_path(&change.path.0).display())));
    let mut names = change.path.0.split(|byte| *byte == b'/');
    if names.any(|name| name.is_empty() || name == b"." || name == b".." || name.eq_ignore_ascii_case(b".git")) {
        return refuse("no change may be there");
    }
    let known = before.get(&change.path.0).filter(|it| it.mode != 0o160_000);
    let fits = match (&change.before, known) {
        (Some(Node::File { digest, .. }), Some(known)) => known.mode & 0o170_000 == 0o100_000 && known.id == *digest,
        (Some(Node::Symlink { target }), Some(known)) => {
            let id = tree::blob_id(&target.0[..], target.0.len() as u64).unwrap_or_default();
            known.mode == 0o120_000 && known.id == id
        }
        (None | Some(Node::Directory { .. }), None) => true,
        _ => false,
    };
    if fits { Ok(()) } else { refuse("what was there before is not what was sent") }
}

/// What a patch is to look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// All of it, as git-apply(1) takes it, binary files too.
    Patch,
    /// Numbers of lines.
    Stat,
    /// A letter and a name.
    Names,
}

/// Writes what differs between two commits; what the user has set for diffs (programs, prefixes, colours) has no part in it.
///
/// # Errors
/// Git does not work, or `to` cannot be written.
pub fn patch(git: &Git, from: &str, until: &str, look: Look, to: &mut (dyn Write + Send)) -> Result<(), WorktreeError> {
    let mut args = vec!["diff-tree", "-r", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-color"];
    match look {
        Look::Patch => args.extend(["--patch", "--binary", "--full-index"]),
        Look::Stat => args.extend(["--stat=100"]),
        Look::Names => args.extend(["--name-status"]),
    }
    args.extend(["--end-of-options", from, until]);
    let (_, copied) = git.converse(&args, |_| Ok(()), |mut read| io::copy(&mut read, to))?;
    copied.map(drop).map_err(|source| WorktreeError::Write { path: "the patch".into(), source })
}

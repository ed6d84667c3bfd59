//! **Applying** changes to a worktree: what was changed here too is found before anything is written, and nothing is written anywhere else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
};

use contract::worktree::{Change, Node};

use crate::{
    blobs, builder,
    changes::{Export, Taken},
    error::{Conflict, WorktreeError},
    git::Git,
    merge::{self, TEXT_MAX},
    place::{Found, Place},
    repo::as_path,
};

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Files and links that were written.
    pub written: usize,
    /// Of those, texts that were changed here too, elsewhere in them.
    pub merged: usize,
    /// Files and links that were removed.
    pub removed: usize,
    /// Changes that were here already.
    pub present: usize,
}

/// One thing to do.
enum Deed<'a> {
    /// Write a file that came.
    Write(&'a Change, bool),
    /// Write a merged text.
    Merge(&'a [u8], Vec<u8>, bool),
    SetRuns(&'a [u8], bool),
    Link(&'a [u8], &'a [u8]),
    MakeDirectory(&'a [u8]),
}

/// All there is to do.
#[derive(Default)]
struct Plan<'a> {
    removals: BTreeSet<&'a [u8]>,
    /// Directories that go if nothing is left in them.
    emptied: BTreeSet<&'a [u8]>,
    deeds: Vec<Deed<'a>>,
    conflicts: Vec<Conflict>,
    done: Applied,
}

/// Applies changes to the directory `root`. Done again after it was cut off, it does the rest.
///
/// # Errors
/// Conflicts, with nothing written; or something cannot be read or written.
pub fn apply(root: &Path, git: &Git, export: &Export<'_>, taken: &Taken) -> Result<Applied, WorktreeError> {
    let place = Place::open(root).map_err(WorktreeError::write(root))?;
    let scratch = tempfile::tempdir_in(export.quarantine).map_err(WorktreeError::write(export.quarantine))?;
    let changes: BTreeMap<&[u8], &Change> = export.changes.changes.iter().map(|it| (&it.path.0[..], it)).collect();
    let planner = Planner { place: &place, git, taken, changes: &changes, scratch: scratch.path(), root };
    let mut plan = Plan::default();
    for change in changes.values() {
        planner.plan(change, &mut plan)?;
    }
    planner.check_replaced(&mut plan)?;
    if !plan.conflicts.is_empty() {
        return Err(WorktreeError::Conflicts(plan.conflicts));
    }
    carry_out(&place, root, export, plan)
}

struct Planner<'a> {
    place: &'a Place,
    git: &'a Git,
    taken: &'a Taken,
    changes: &'a BTreeMap<&'a [u8], &'a Change>,
    scratch: &'a Path,
    root: &'a Path,
}

impl<'a> Planner<'a> {
    fn plan(&self, change: &'a Change, plan: &mut Plan<'a>) -> Result<(), WorktreeError> {
        let path = &change.path.0[..];
        let mut found = self.place.look(path).map_err(WorktreeError::read(&self.root.join(as_path(path))))?;
        if found == Found::Blocked && self.parent_becomes_directory(path) {
            found = Found::Nothing;
        }
        // Only what git would remember of a file counts: its content and whether it runs.
        let before = self.taken.before.get(path);
        let gone = found == Found::Blocked && change.after.is_none();
        if gone || is(&found, change.after.as_ref()) {
            plan.done.present += usize::from(!matches!(change.after, Some(Node::Directory { .. })));
            return Ok(());
        }
        let runs_before = before.map(|it| it.mode & 0o100 != 0);
        match (&found, &change.before, &change.after) {
            (_, Some(Node::Directory { .. }), None) => {
                plan.emptied.insert(path);
            }
            (Found::Directory, Some(Node::Directory { .. }), Some(Node::File { .. } | Node::Symlink { .. })) => {
                plan.emptied.insert(path);
                self.write(change, is_run(change), plan);
            }
            // An apply that was cut off removed it, or the user did so too.
            (Found::Nothing, Some(Node::File { .. } | Node::Symlink { .. }), Some(Node::Directory { .. }))
            | (Found::Nothing, Some(Node::Directory { .. }), Some(Node::File { .. } | Node::Symlink { .. })) => {
                self.write(change, is_run(change), plan)
            }
            (Found::File { runs, .. }, Some(Node::File { .. }), Some(Node::File { mode, .. })) => {
                let wanted = mode & 0o100 != 0;
                let runs = if runs_before == Some(wanted) { *runs } else { wanted };
                if is_content(&found, change.before.as_ref()) {
                    self.write(change, runs, plan);
                } else if is_content(&found, change.after.as_ref()) {
                    plan.deeds.push(Deed::SetRuns(path, runs));
                    plan.done.written += 1;
                } else {
                    self.merge(change, &found, runs, plan)?;
                }
            }
            _ if is_content(&found, change.before.as_ref()) => {
                let replaced = matches!(change.after, Some(Node::File { .. } | Node::Symlink { .. }));
                // One takes the place of another by a rename, so that there is one at any time.
                if matches!(found, Found::File { .. } | Found::Link(_)) && !replaced {
                    plan.removals.insert(path);
                    plan.done.removed += usize::from(change.after.is_none());
                }
                self.write(change, is_run(change), plan);
            }
            _ => plan.conflicts.push(Conflict { path: as_path(path), why: why(&found, change) }),
        }
        Ok(())
    }

    /// Plans what comes to be at a path, if something does.
    fn write(&self, change: &'a Change, runs: bool, plan: &mut Plan<'a>) {
        let path = &change.path.0[..];
        match &change.after {
            Some(Node::File { .. }) => plan.deeds.push(Deed::Write(change, runs)),
            Some(Node::Symlink { target }) => plan.deeds.push(Deed::Link(path, &target.0)),
            Some(Node::Directory { .. }) => return plan.deeds.push(Deed::MakeDirectory(path)),
            None => return,
        }
        plan.done.written += 1;
    }

    fn merge(&self, change: &'a Change, found: &Found, runs: bool, plan: &mut Plan<'a>) -> Result<(), WorktreeError> {
        let path = &change.path.0[..];
        let conflict = Conflict { path: as_path(path), why: "it was changed here too" };
        let (Found::File { size, .. }, Some(Node::File { digest, .. }), Some(Node::File { size: new, .. })) =
            (found, &change.before, &change.after)
        else {
            plan.conflicts.push(conflict);
            return Ok(());
        };
        let base = if (*size).max(*new) > TEXT_MAX { None } else { blobs::read(self.git, digest, TEXT_MAX)? };
        let merged = match base {
            None => None,
            Some(base) => {
                let ours = self.place.read(path).map_err(WorktreeError::read(&self.root.join(as_path(path))))?;
                let file = self.changed_file(change);
                let theirs = std::fs::read(&file).map_err(WorktreeError::read(&file))?;
                merge::merge(self.scratch, &ours, &base, &theirs)?
            }
        };
        match merged {
            None => plan.conflicts.push(conflict),
            Some(text) => {
                plan.deeds.push(Deed::Merge(path, text, runs));
                plan.done.merged += 1;
                plan.done.written += 1;
            }
        }
        Ok(())
    }

    fn changed_file(&self, change: &Change) -> PathBuf {
        // The scratch directory is in the quarantine.
        self.scratch.parent().unwrap_or(self.scratch).join("tree").join(change.path.as_path())
    }

    /// Whether something above a path is a file or link here and becomes a directory.
    fn parent_becomes_directory(&self, path: &[u8]) -> bool {
        std::iter::successors(builder::parent(path), |path| builder::parent(path)).any(|parent| {
            self.changes.get(parent).is_some_and(|change| {
                matches!(change.after, Some(Node::Directory { .. }))
                    && !matches!(change.before, Some(Node::Directory { .. }))
            })
        })
    }

    /// A directory that becomes a file must hold nothing but what is removed.
    fn check_replaced(&self, plan: &mut Plan<'a>) -> Result<(), WorktreeError> {
        let replaced = self.changes.values().filter(|change| {
            matches!(change.before, Some(Node::Directory { .. }))
                && matches!(change.after, Some(Node::File { .. } | Node::Symlink { .. }))
        });
        for change in replaced {
            let mut waiting = vec![change.path.0.clone()];
            while let Some(path) = waiting.pop() {
                let found = self.place.look(&path).map_err(WorktreeError::read(&self.root.join(as_path(&path))))?;
                if found == Found::Directory {
                    let names =
                        self.place.names(&path).map_err(WorktreeError::read(&self.root.join(as_path(&path))))?;
                    waiting.extend(names.iter().map(|name| [&path, name.as_encoded_bytes()].join(&b'/')));
                } else if found != Found::Nothing && !plan.removals.contains(&path[..]) && path != change.path.0 {
                    plan.conflicts.push(Conflict {
                        path: as_path(&path),
                        why: "its directory is replaced, and it was not in the VM",
                    });
                }
            }
        }
        Ok(())
    }
}

/// Whether what comes is a file that may be run.
fn is_run(change: &Change) -> bool {
    matches!(change.after, Some(Node::File { mode, .. }) if mode & 0o100 != 0)
}

/// Whether what is here is what a node says, in content and whether it runs.
fn is(found: &Found, node: Option<&Node>) -> bool {
    match (found, node) {
        (Found::File { runs, .. }, Some(Node::File { mode, .. })) => {
            is_content(found, node) && *runs == (mode & 0o100 != 0)
        }
        _ => is_content(found, node),
    }
}

fn is_content(found: &Found, node: Option<&Node>) -> bool {
    match (found, node) {
        (Found::Nothing, None) | (Found::Directory, Some(Node::Directory { .. })) => true,
        (Found::File { digest, .. }, Some(Node::File { digest: wanted, .. })) => digest == wanted,
        (Found::Link(target), Some(Node::Symlink { target: wanted })) => *target == wanted.0,
        _ => false,
    }
}

fn why(found: &Found, change: &Change) -> &'static str {
    match (found, &change.before) {
        (Found::Nothing, Some(_)) => "it is gone here",
        (Found::Blocked, _) => "what is above it here is no directory",
        (Found::Directory, _) => "a directory is here",
        (Found::Other, _) => "something that is no file is here",
        (_, None) => "another one is here",
        (_, Some(_)) => "it was changed here too",
    }
}

fn carry_out(place: &Place, root: &Path, export: &Export<'_>, plan: Plan<'_>) -> Result<Applied, WorktreeError> {
    let written = |path: &[u8]| {
        let path = root.join(as_path(path));
        move |source| WorktreeError::Write { path, source }
    };
    for path in plan.removals.iter().rev() {
        place.remove(path).map_err(written(path))?;
    }
    for path in plan.removals.iter().rev() {
        if let Some(parent) = builder::parent(path) {
            place.remove_empty(parent);
        }
    }
    for path in plan.emptied.iter().rev() {
        place.remove_empty(path);
    }
    for deed in &plan.deeds {
        match deed {
            Deed::Write(change, runs) => {
                let from = export.file(change);
                let mut file = File::open(&from).map_err(WorktreeError::read(&from))?;
                place.write(&change.path.0, &mut file, *runs).map_err(written(&change.path.0))?;
            }
            Deed::Merge(path, text, runs) => place.write(path, &mut &text[..], *runs).map_err(written(path))?,
            Deed::SetRuns(path, runs) => place.set_runs(path, *runs).map_err(written(path))?,
            Deed::Link(path, target) => place.link(path, target).map_err(written(path))?,
            Deed::MakeDirectory(path) => place.make_directory(path).map_err(written(path))?,
        }
    }
    Ok(plan.done)
}

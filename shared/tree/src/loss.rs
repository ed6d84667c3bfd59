//! A **loss**: what a user would not have any more if a workspace's tree went away.

use contract::FileName;
use sha1::{Digest, Sha1};

use crate::{
    GuestError, Transfer,
    files::Root,
    repo::Repository,
    scan::{Difference, Scan, Seen},
    state::Base,
    walk::WARNINGS_MAX,
};

/// What would be lost, in a few words: changes, commits, stashes, unless the last export took exactly what is there now.
pub(crate) fn loss(base: &Base, root: &Root, scan: &Scan, watch: &Transfer) -> Result<Option<String>, GuestError> {
    let Some(what) = first_change(scan, base) else { return Ok(None) };
    // No export takes a repository within the workspace along.
    let Some(exported) = base.head.exported.as_ref().filter(|_| scan.nested.is_empty()) else { return Ok(Some(what)) };
    let differences = scan.differences(base, root, u64::MAX, watch)?;
    let (before, now) = (&base.head.repository, &scan.repository);
    if digest_of(&differences, now, true) == *exported {
        return Ok(before.moved_elsewhere(now));
    }
    if digest_of(&differences, now, false) == *exported {
        return Ok(before.moved(now));
    }
    Ok(Some(what))
}

/// What an export of all changes, and of HEAD's commits or the files they left, does not take along, a line each; at most
/// [`WARNINGS_MAX`].
pub(crate) fn left_behind(base: &Base, scan: &Scan) -> Vec<String> {
    let elsewhere = base.head.repository.elsewhere(&scan.repository).into_iter();
    let commits = elsewhere.map(|what| format!("{what}: not taken along"));
    commits.chain(scan.losses.iter().cloned()).take(WARNINGS_MAX).collect()
}

/// The path of some change, where there is one: what a user would not want to lose.
fn first_change(scan: &Scan, base: &Base) -> Option<String> {
    let mut paths: Vec<_> = base
        .rows
        .iter()
        .zip(&scan.seen)
        .filter(|(row, seen)| !row.is_git() && matches!(seen, Seen::Changed(_) | Seen::Gone))
        .map(|(row, _)| &row.path)
        .chain(scan.added.iter().map(|(path, _)| path))
        .chain(&scan.nested)
        .collect();
    let moved = base.head.repository.moved(&scan.repository);
    paths.sort_unstable();
    let count = paths.len();
    let some: Vec<_> = paths.into_iter().take(3).map(|path| FileName(path.clone()).to_string()).collect();
    match (count, moved) {
        (0, moved) => moved,
        (1..=3, None) => Some(some.join(", ")),
        (_, None) => Some(format!("{} and {} more", some.join(", "), count - some.len())),
        (_, Some(moved)) => Some(format!("{moved}, {}", some.join(", "))),
    }
}

/// What was exported, in one digest; with HEAD's commits only where they went along.
pub(crate) fn digest_of(differences: &[Difference], repository: &Repository, commits: bool) -> String {
    let mut hash = Sha1::new();
    for difference in differences {
        hash.update(serde_json::to_vec(&difference.change()).unwrap_or_default());
    }
    if commits {
        hash.update(serde_json::to_vec(&repository.head).unwrap_or_default());
    }
    hex::encode(hash.finalize())
}

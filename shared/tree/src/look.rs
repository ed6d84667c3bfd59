//! A **look** at a workspace: whether there is anything to export, at the price of a `stat` of each file.

use contract::worktree::Looked;

use crate::{
    GuestError, StateDir, Transfer,
    scan::scan,
    site::{Present, Site},
};

/// Whether the files of a workspace differ from its base. Changes nothing, and waits for nothing that does. Blocking.
///
/// # Errors
/// There is no such workspace, or it cannot be read.
pub fn look(path: &str, state: &StateDir) -> Result<Looked, GuestError> {
    let none = || GuestError::NoWorkspace(path.to_owned());
    let site = Site::find(path, state)?.ok_or_else(none)?;
    let Present::Prepared(base, root) = site.look()? else { return Err(none()) };
    let scan = scan(&base, &root, false, &Transfer::default())?;
    Ok(Looked { changed: scan.differs(&base) })
}

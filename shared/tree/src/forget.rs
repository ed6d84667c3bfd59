//! **Forgetting**: a workspace's files are removed, and what is known of it.

use contract::worktree::RemoveOrder;

use crate::{
    GuestError, StateDir, Transfer,
    export::digest_of,
    receive::recover_at,
    scan::scan,
    site::{Present, Site},
    state,
};

/// Forgets a workspace and removes its files. Blocking.
///
/// # Errors
/// Changes were never exported, or files cannot be removed. A path that is no workspace is [`GuestError::NoWorkspace`].
pub fn forget(order: &RemoveOrder, state: &StateDir) -> Result<(), GuestError> {
    let none = || GuestError::NoWorkspace(order.path.clone());
    let site = Site::find(&order.path, state)?.ok_or_else(none)?;
    recover_at(&site.state)?;
    let wrong = || GuestError::files("removing the workspace");
    match site.look()? {
        Present::Prepared(base, root) => {
            let watch = Transfer::default();
            if !order.force && !order.keep_files {
                let scan = scan(&base, &root, false, &watch)?;
                if let Some(what) = scan.first_change(&base) {
                    let differences = scan.differences(&base, &root, u64::MAX, &watch)?;
                    let commits = base.head.repository.moved(&scan.repository).is_some();
                    let exported = |commits| Some(digest_of(&differences, &scan.repository, commits));
                    if base.head.exported != exported(true) && (commits || base.head.exported != exported(false)) {
                        return Err(GuestError::Unexported { path: order.path.clone(), what });
                    }
                }
            }
            drop(root);
            if !order.keep_files {
                if site.is_mount()? {
                    let why = "a filesystem is mounted there, which cannot be removed; keep its files".to_owned();
                    return Err(GuestError::Path { path: order.path.clone(), why });
                }
                site.parent.remove(&site.name).map_err(wrong())?;
            }
        }
        // Its files went without us.
        _ if site.state.exists() => {}
        _ => return Err(none()),
    }
    state::forget(&site.state).map_err(wrong())
}

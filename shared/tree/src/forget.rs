//! **Forgetting**: a workspace's files are removed, and what is known of it.

use contract::worktree::RemoveOrder;

use crate::{
    GuestError, StateDir, Transfer,
    loss::loss,
    receive::{abandon, recover_at},
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
    let wrong = || GuestError::files("removing the workspace");
    match recover_at(&site.state) {
        // Nothing that is known of it can be believed.
        Err(GuestError::Damaged(_)) if order.force => {
            abandon(&site.state)?;
            return if order.keep_files { Ok(()) } else { remove(order, &site) };
        }
        outcome => outcome?,
    }
    match site.look()? {
        Present::Prepared(base, root) => {
            if !order.keep_files {
                let watch = Transfer::default();
                let scan = scan(&base, &root, true, &watch)?;
                if let Some(mount) = &scan.mount {
                    let why = format!("something else is mounted at {mount} in it; unmount it first");
                    return Err(GuestError::Path { path: order.path.clone(), why });
                }
                if !order.force
                    && let Some(what) = loss(&base, &root, &scan, &watch)?
                {
                    return Err(GuestError::Unexported { path: order.path.clone(), what });
                }
                drop(root);
                remove(order, &site)?;
            }
        }
        // Its files went without us.
        _ if site.state.exists() => {}
        _ => return Err(none()),
    }
    state::forget(&site.state).map_err(wrong())
}

fn remove(order: &RemoveOrder, site: &Site) -> Result<(), GuestError> {
    if site.is_mount()? {
        let why = "a filesystem is mounted there, which cannot be removed; keep its files".to_owned();
        return Err(GuestError::Path { path: order.path.clone(), why });
    }
    site.parent.remove(&site.name).map_err(GuestError::files("removing the workspace"))
}

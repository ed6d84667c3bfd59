//! Placing **in place**: files of the tree that is there are removed and replaced one by one.

use std::io;

use nix::fcntl::renameat;

use super::place::Rest;
use crate::{
    GuestError,
    files::{Root, split},
    repo,
    row::{Kind, Row},
    state::Base,
};

pub(super) fn named(what: &str, path: &[u8]) -> String {
    format!("{what} {}", contract::FileName(path.to_vec()))
}

/// Removes what the new tree has not: rows of the old one, what was added to it, and with `clean` what git ignores.
pub(super) fn remove_old(root: &Root, next: &Base, base: &Base, rest: &Rest, clean: bool) -> Result<(), GuestError> {
    let gone = |path: &[u8]| next.find(path).is_none();
    let failed = |path: &[u8]| {
        let what = named("removing", path);
        move |source| GuestError::Files { what, source }
    };
    for path in rest.added.iter().filter(|path| gone(path)).chain(rest.ignored.iter().filter(|_| clean)) {
        remove(root, path).map_err(failed(path))?;
    }
    for name in repo::UNDER_WAY {
        let path = crate::files::join(b".git", name);
        if gone(&path) {
            remove(root, &path).map_err(failed(&path))?;
        }
    }
    for row in base.rows.iter().rev().filter(|row| gone(&row.path)) {
        let outcome = match row.kind {
            // What git ignores may still be in it.
            Kind::Directory { .. } if !clean => remove_empty(root, &row.path),
            _ => remove(root, &row.path),
        };
        outcome.map_err(failed(&row.path))?;
    }
    Ok(())
}

/// The directory of a path, reached without links, with its name there; none when it is not there.
fn place<'a>(root: &Root, path: &'a [u8]) -> io::Result<Option<(Root, &'a [u8])>> {
    let (above, name) = split(path);
    match root.directory(above) {
        Ok(above) => Ok(Some((above, name))),
        Err(error) if crate::scan::is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn remove(root: &Root, path: &[u8]) -> io::Result<()> {
    match place(root, path)? {
        Some((above, name)) => above.remove(name),
        None => Ok(()),
    }
}

fn remove_empty(root: &Root, path: &[u8]) -> io::Result<()> {
    match place(root, path)? {
        // Something else may have taken its place since.
        Some((above, name)) if above.stat(name)?.is_some_and(|stat| !stat.is_dir()) => above.remove(name),
        Some((above, name)) => above.remove_empty(name).map(drop),
        None => Ok(()),
    }
}

/// Puts one row in its place: a directory is made or mended, what was staged is renamed.
pub(super) fn put(root: &Root, stage: &Root, index: usize, row: &Row, owner: Option<(u32, u32)>) -> io::Result<()> {
    let staged = index.to_string();
    let Kind::Directory { mode } = row.kind else {
        if stage.stat(staged.as_bytes())?.is_none() {
            return Ok(());
        }
        let (above, name) = place(root, &row.path)?.ok_or(io::ErrorKind::NotFound)?;
        if above.stat(name)?.is_some_and(|stat| stat.is_dir()) {
            above.remove(name)?;
        }
        return Ok(renameat(stage, staged.as_bytes(), &above, name)?);
    };
    let (above, name) = place(root, &row.path)?.ok_or(io::ErrorKind::NotFound)?;
    match above.stat(name)? {
        Some(stat) if stat.is_dir() && stat.bits() == mode => return Ok(()),
        Some(stat) if stat.is_dir() => {}
        Some(_) => {
            above.remove(name)?;
            above.make(name, 0o700)?;
        }
        None => above.make(name, 0o700)?,
    }
    let made = std::fs::File::from(above.directory(name)?.as_owned()?);
    if let Some((user, group)) = owner {
        std::os::unix::fs::fchown(&made, Some(user), Some(group))?;
    }
    use std::os::unix::fs::PermissionsExt;
    made.set_permissions(std::fs::Permissions::from_mode(mode))
}

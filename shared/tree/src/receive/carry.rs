//! **Carrying over**: what git ignores in an old tree (build outputs, caches) is renamed into the new one, whose own entries count more.

use std::{collections::BTreeSet, io};

use contract::FileName;
use nix::fcntl::renameat;

use crate::{
    files::{Root, join, split},
    walk::WARNINGS_MAX,
};

/// What carrying did.
#[derive(Default)]
pub(super) struct Carried {
    /// Directories of the new tree that changed by it.
    pub touched: BTreeSet<Vec<u8>>,
    /// Something is left in the old tree that has no place in the new one.
    pub failed: bool,
}

/// Carries paths over; `warnings` tell of what could not be carried.
pub(super) fn carry(old: &Root, new: &Root, paths: &[Vec<u8>], warnings: &mut Vec<String>) -> Carried {
    let mut carried = Carried::default();
    for path in paths {
        let outcome = make_place(old, new, split(path).0, &mut carried.touched)
            .and_then(|()| carry_one(old, new, path, &mut carried, warnings));
        if let Err(error) = outcome {
            // The new tree's own entries count more; everything else is the system's refusal.
            carried.failed |= error.kind() != io::ErrorKind::Other;
            warn(warnings, path, &error.to_string());
        }
    }
    carried
}

fn warn(warnings: &mut Vec<String>, path: &[u8], why: &str) {
    if warnings.len() < WARNINGS_MAX {
        warnings.push(format!("{}, which git ignores, was not kept: {why}", FileName(path.to_vec())));
    }
}

/// Makes the directories it was in, as they were.
fn make_place(old: &Root, new: &Root, place: &[u8], touched: &mut BTreeSet<Vec<u8>>) -> io::Result<()> {
    if place.is_empty() {
        return Ok(());
    }
    let above = split(place).0;
    make_place(old, new, above, touched)?;
    match new.stat(place)? {
        Some(stat) if stat.is_dir() => Ok(()),
        Some(_) => Err(io::Error::other("the new tree has something else in its place")),
        None => {
            let like = old.directory(place)?;
            let metadata = std::fs::File::from(like.as_owned()?).metadata()?;
            new.make(place, 0o700)?;
            touched.insert(above.to_vec());
            use std::os::unix::fs::{MetadataExt, PermissionsExt};
            let made = std::fs::File::from(new.directory(place)?.as_owned()?);
            std::os::unix::fs::fchown(&made, Some(metadata.uid()), Some(metadata.gid()))?;
            made.set_permissions(std::fs::Permissions::from_mode(metadata.mode() & 0o7777))
        }
    }
}

fn carry_one(old: &Root, new: &Root, path: &[u8], carried: &mut Carried, warnings: &mut Vec<String>) -> io::Result<()> {
    let Some(here) = old.stat(path)? else { return Ok(()) };
    match new.stat(path)? {
        None => {
            let (place, name) = split(path);
            renameat(&old.directory(place)?, name, &new.directory(place)?, name)?;
            carried.touched.insert(place.to_vec());
        }
        Some(there) if here.is_dir() && there.is_dir() => {
            for (name, _) in old.list(path)? {
                let path = join(path, &name);
                if let Err(error) = carry_one(old, new, &path, carried, warnings) {
                    carried.failed = true;
                    warn(warnings, &path, &error.to_string());
                }
            }
        }
        Some(_) => warn(warnings, path, "the new tree has it too"),
    }
    Ok(())
}

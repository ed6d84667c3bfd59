//! A **site**: the place of one workspace in the guest, found once, with its parent directory held open.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Component, Path, PathBuf},
};

use contract::{FileName, OperationId, worktree};
use nix::fcntl::{RenameFlags, renameat2};
use sha1::{Digest, Sha1};

use crate::{
    GuestError, StateDir,
    files::{Root, gone_is_fine},
    state::{Base, Journal},
};

/// Directories nobody's workspace can be: a system lives in them.
const SYSTEM: [&str; 20] = [
    "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/media", "/mnt", "/opt", "/proc",
    "/root", "/run", "/sbin", "/sys", "/tmp", "/usr", "/var",
];
/// Directories that none can be in.
const KERNEL: [&str; 3] = ["/dev", "/proc", "/sys"];

/// The place of a workspace.
#[derive(Debug)]
pub(crate) struct Site {
    /// As it was asked for.
    pub shown: String,
    /// Without links.
    pub path: PathBuf,
    /// The directory it is in.
    pub parent: Root,
    /// Its name there.
    pub name: Vec<u8>,
    /// What is known of it.
    pub state: PathBuf,
    /// Directories that were made for it, outermost first.
    pub made: Vec<PathBuf>,
}

/// What is at a site.
#[derive(Debug)]
pub(crate) enum Present {
    Nothing,
    /// A directory nobody prepared; an empty one is nobody's loss.
    Foreign {
        empty: bool,
    },
    /// A file or a link.
    NoDirectory,
    Prepared(Box<Base>, Root),
}

impl Site {
    /// Finds it; none where the directory it would be in is not there.
    pub(crate) fn find(path: &str, state: &StateDir) -> Result<Option<Self>, GuestError> {
        let (above, missing, name) = resolve(path)?;
        if !missing.is_empty() {
            return Ok(None);
        }
        Self::at(path, &above, name, state, Vec::new()).map(Some)
    }

    /// Finds it, and makes the directories it is in. What is made is told to `note` before.
    pub(crate) fn make(
        path: &str,
        state: &StateDir,
        owner: Option<(u32, u32)>,
        note: impl FnOnce(&Path, &Path, &[PathBuf]) -> io::Result<()>,
    ) -> Result<Self, GuestError> {
        let (above, missing, name) = resolve(path)?;
        let (mut parent, mut made) = (above, Vec::new());
        for part in &missing {
            parent.push(part);
            made.push(parent.clone());
        }
        let whole = parent.join(&name);
        note(&state_of(&whole, state), &whole, &made).map_err(GuestError::files("noting what is made"))?;
        for directory in &made {
            make_directory(directory, owner).map_err(GuestError::files(format!("making {}", directory.display())))?;
        }
        Self::at(path, &parent, name, state, made)
    }

    fn at(shown: &str, parent: &Path, name: PathBuf, state: &StateDir, made: Vec<PathBuf>) -> Result<Self, GuestError> {
        let path = parent.join(&name);
        let state = state_of(&path, state);
        let parent = Root::open(parent).map_err(GuestError::files(format!("opening {}", parent.display())))?;
        let name = name.as_os_str().as_bytes().to_vec();
        Ok(Self { shown: shown.to_owned(), path, parent, name, state, made })
    }

    /// The one of a journal, whose directories may not be there any more.
    pub(crate) fn of_journal(journal: &Journal, state: &Path) -> io::Result<Option<Self>> {
        let path = journal.path.as_path().to_owned();
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
        let parent = match Root::open(above) {
            Ok(parent) => parent,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let name = name.as_bytes().to_vec();
        let made = journal.made.iter().map(|made| made.as_path().to_owned()).collect();
        let shown = path.display().to_string();
        Ok(Some(Self { shown, parent, name, state: state.to_owned(), made, path }))
    }

    /// Looks what is there.
    pub(crate) fn look(&self) -> Result<Present, GuestError> {
        let wrong = || GuestError::files(format!("looking at {}", self.shown));
        let Some((stat, mounted)) = self.parent.stat_here(&self.name).map_err(wrong())? else {
            return Ok(Present::Nothing);
        };
        if !stat.is_dir() {
            return Ok(Present::NoDirectory);
        }
        let base = Base::load(&self.state).map_err(GuestError::files("reading the workspace's base"))?;
        // Through a mount point, whose filesystem is another than the parent's.
        let root = if mounted { Root::open(&self.path) } else { self.parent.directory(&self.name) };
        let root = root.map_err(wrong())?;
        Ok(match base {
            Some(base) => Present::Prepared(Box::new(base), root),
            None => Present::Foreign { empty: root.list(b"").map_err(wrong())?.is_empty() },
        })
    }

    /// Whether another filesystem is mounted there.
    pub(crate) fn is_mount(&self) -> Result<bool, GuestError> {
        let found = self.parent.stat_here(&self.name);
        Ok(found.map_err(GuestError::files(format!("looking at {}", self.shown)))?.is_some_and(|(_, mounted)| mounted))
    }

    /// The name of the directory beside it, or within it where it is a mount point, that new files are made in.
    pub(crate) fn staging(&self, operation: OperationId) -> Vec<u8> {
        let name = &self.name[..self.name.len().min(64)];
        [b".", name, b".warren-", operation.to_string().as_bytes()].concat()
    }

    /// Removes the directories that were made for it, where they are empty.
    pub(crate) fn unmake(&self) {
        for directory in self.made.iter().rev() {
            fs::remove_dir(directory).unwrap_or_default();
        }
    }

    /// Gives a directory beside it its name; what has that name now gets the other's, if anything has.
    pub(crate) fn swap(&self, staging: &[u8]) -> io::Result<()> {
        let (parent, name) = (&self.parent, &self.name[..]);
        if parent.stat(name)?.is_some() {
            renameat2(parent, staging, parent, name, RenameFlags::RENAME_EXCHANGE)?;
        } else {
            renameat2(parent, staging, parent, name, RenameFlags::RENAME_NOREPLACE)?;
        }
        Ok(())
    }
}

fn make_directory(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    match DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        outcome => outcome?,
    }
    if let Some((user, group)) = owner {
        std::os::unix::fs::lchown(path, Some(user), Some(group))?;
    }
    Ok(())
}

/// Where what is known of it is.
fn state_of(path: &Path, state: &StateDir) -> PathBuf {
    state.0.join(hex::encode(Sha1::digest(path.as_os_str().as_bytes())))
}

/// The directories above it that are there, without links; those that are missing; its name.
fn resolve(path: &str) -> Result<(PathBuf, Vec<PathBuf>, PathBuf), GuestError> {
    let wrong = |why: &str| GuestError::Path { path: path.to_owned(), why: why.to_owned() };
    if path.len() > worktree::PATH_MAX {
        return Err(wrong("its path is longer than 1024 bytes"));
    }
    if path.contains('\0') {
        return Err(wrong("its path holds a NUL byte"));
    }
    let mut parts = Vec::new();
    for part in Path::new(path).components() {
        match part {
            Component::RootDir if parts.is_empty() => {}
            Component::Normal(part) if part.len() <= 255 => parts.push(PathBuf::from(part)),
            Component::Normal(_) => return Err(wrong("a name in its path is longer than 255 bytes")),
            Component::CurDir if !parts.is_empty() => {}
            _ => return Err(wrong("its path must begin with / and have no ..")),
        }
    }
    if !path.starts_with('/') {
        return Err(wrong("its path must begin with /"));
    }
    let name = parts.pop().ok_or_else(|| wrong("it is the root directory"))?;
    let (mut above, mut missing) = (PathBuf::from("/"), Vec::new());
    for part in parts {
        let next = above.join(&part);
        match missing.is_empty().then(|| fs::canonicalize(&next)) {
            Some(Ok(found)) if found.is_dir() => above = found,
            Some(Ok(_)) => return Err(wrong(&format!("{} is no directory", next.display()))),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                if fs::symlink_metadata(&next).is_ok() {
                    return Err(wrong(&format!("{} is a link that leads nowhere", next.display())));
                }
                missing.push(part);
            }
            Some(Err(error)) => return Err(wrong(&format!("{}: {error}", next.display()))),
            None => missing.push(part),
        }
    }
    let whole = missing.iter().fold(above.clone(), |path, part| path.join(part)).join(&name);
    if SYSTEM.iter().any(|system| whole == Path::new(system)) || KERNEL.iter().any(|kernel| whole.starts_with(kernel)) {
        return Err(wrong("a part of the system lives there"));
    }
    Ok((above, missing, name))
}

/// Directories of a journal's, as they are written.
pub(crate) fn names(paths: &[PathBuf]) -> Vec<FileName> {
    paths.iter().map(|path| FileName::from(path.as_os_str())).collect()
}

/// Removes directories that were made, where the parent of what was to be there is gone or never was.
pub(crate) fn unmake(made: &[FileName]) -> io::Result<()> {
    for directory in made.iter().rev() {
        match gone_is_fine(fs::remove_dir(directory.as_path())) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return Ok(()),
            outcome => outcome?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_is_no_workspace_and_links_are_seen_through() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir(dir.path().join("state"));
        for path in ["", "/", "relative", "/a/../b", "/etc", "/etc/", "/proc/1", "/usr", "/dev/shm/x", "/x\0"] {
            assert!(matches!(Site::find(path, &state), Err(GuestError::Path { .. })), "{path:?}");
        }
        fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let find = |name: &str| Site::find(dir.path().join(name).to_str().unwrap(), &state).unwrap();
        assert_eq!(find("link/ws").unwrap().state, find("real/ws").unwrap().state);
        assert!(find("missing/ws").is_none());
        std::os::unix::fs::symlink("/usr", dir.path().join("usr")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("root")).unwrap();
        assert!(Site::find(dir.path().join("root/usr").to_str().unwrap(), &state).is_err());
    }
}

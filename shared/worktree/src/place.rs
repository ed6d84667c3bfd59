//! A **place** that files are written to: a directory out of which no path leads, whatever symbolic links lie in it.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat, renameat},
    sys::stat::{Mode, SFlag, fstatat, mkdirat},
    unistd::{UnlinkatFlags, symlinkat, unlinkat},
};

use crate::builder;

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing.
    Nothing,
    /// What is above it is no directory.
    Blocked,
    Directory,
    /// A file with its blob id and whether it may be run.
    File {
        digest: String,
        runs: bool,
        size: u64,
    },
    /// A symbolic link's target.
    Link(Vec<u8>),
    /// Something else.
    Other,
}

/// The directory.
pub(crate) struct Place {
    root: OwnedFd,
}

impl Place {
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let root = nix::fcntl::open(dir, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY, Mode::empty())?;
        Ok(Self { root })
    }

    /// Opens the directory a path is in, following no link; makes those that are missing where `make` says so.
    fn parent<'p>(&self, path: &'p [u8], make: bool) -> nix::Result<(OwnedFd, &'p OsStr)> {
        let mut names = path.split(|byte| *byte == b'/').map(OsStr::from_bytes);
        let last = names.next_back().filter(|name| is_name(name)).ok_or(Errno::EINVAL)?;
        let mut at = self.root.try_clone().map_err(|_| Errno::EMFILE)?;
        for name in names {
            if !is_name(name) {
                return Err(Errno::EINVAL);
            }
            let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
            let opened = openat(&at, name, flags, Mode::empty());
            at = match opened {
                Err(Errno::ENOENT) if make => {
                    mkdirat(&at, name, Mode::from_bits_truncate(0o777))?;
                    openat(&at, name, flags, Mode::empty())?
                }
                other => other?,
            };
        }
        Ok((at, last))
    }

    /// Looks at a path.
    pub(crate) fn look(&self, path: &[u8]) -> io::Result<Found> {
        let (dir, name) = match self.parent(path, false) {
            Ok(found) => found,
            Err(Errno::ENOENT) => return Ok(Found::Nothing),
            Err(Errno::ENOTDIR | Errno::ELOOP) => return Ok(Found::Blocked),
            Err(error) => return Err(error.into()),
        };
        let stat = match fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return Ok(Found::Nothing),
            Err(error) => return Err(error.into()),
        };
        Ok(match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR => Found::Directory,
            SFlag::S_IFLNK => Found::Link(readlinkat(&dir, name)?.into_encoded_bytes()),
            SFlag::S_IFREG => {
                let file = open_file(&dir, name)?;
                let size = file.metadata()?.len();
                let runs = file.metadata()?.permissions().mode() & 0o100 != 0;
                Found::File { digest: tree::blob_id(file, size)?, runs, size }
            }
            _ => Found::Other,
        })
    }

    /// Reads a file.
    pub(crate) fn read(&self, path: &[u8]) -> io::Result<Vec<u8>> {
        let (dir, name) = self.parent(path, false)?;
        let mut bytes = Vec::new();
        open_file(&dir, name)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// The names in a directory.
    pub(crate) fn names(&self, path: &[u8]) -> io::Result<Vec<OsString>> {
        let (parent, name) = self.parent(path, false)?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        let mut dir = nix::dir::Dir::from_fd(openat(&parent, name, flags, Mode::empty())?)?;
        let names =
            dir.iter().map(|entry| entry.map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_owned()));
        let names = names.collect::<nix::Result<Vec<_>>>()?;
        Ok(names.into_iter().filter(|name| name != "." && name != "..").collect())
    }

    /// Writes a file whole or not at all, in place of a file or link; its permissions are the usual ones with `runs` in them.
    pub(crate) fn write(&self, path: &[u8], content: &mut dyn Read, runs: bool) -> io::Result<()> {
        let (dir, name) = self.parent(path, true)?;
        let mode = Mode::from_bits_truncate(if runs { 0o777 } else { 0o666 });
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let (fd, aside) = aside(|name| openat(&dir, name, flags, mode))?;
        let mut file = File::from(fd);
        let written = io::copy(content, &mut file).and_then(|_| file.flush());
        let placed = written.and_then(|()| Ok(renameat(&dir, &*aside, &dir, name)?));
        if placed.is_err() {
            discard(&dir, &aside);
        }
        placed
    }

    /// Sets or takes away the right to run a file; its other permissions stay.
    pub(crate) fn set_runs(&self, path: &[u8], runs: bool) -> io::Result<()> {
        let (dir, name) = self.parent(path, false)?;
        let file = open_file(&dir, name)?;
        let mode = file.metadata()?.permissions().mode() & 0o777;
        let mode = if runs { mode | ((mode & 0o444) >> 2) } else { mode & !0o111 };
        file.set_permissions(std::fs::Permissions::from_mode(mode))
    }

    /// Makes a symbolic link in place of a file or link.
    pub(crate) fn link(&self, path: &[u8], target: &[u8]) -> io::Result<()> {
        let (dir, name) = self.parent(path, true)?;
        let ((), aside) = aside(|name| symlinkat(OsStr::from_bytes(target), &dir, name))?;
        let placed = renameat(&dir, &*aside, &dir, name);
        if placed.is_err() {
            discard(&dir, &aside);
        }
        Ok(placed?)
    }

    /// Makes a directory, and those above it.
    pub(crate) fn make_directory(&self, path: &[u8]) -> io::Result<()> {
        let (dir, name) = self.parent(path, true)?;
        match mkdirat(&dir, name, Mode::from_bits_truncate(0o777)) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a file or link, which may be gone.
    pub(crate) fn remove(&self, path: &[u8]) -> io::Result<()> {
        match self.parent(path, false).and_then(|(dir, name)| unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir)) {
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a directory if nothing is in it, and then those above it likewise, as git does.
    pub(crate) fn remove_empty(&self, path: &[u8]) {
        let mut path = path;
        loop {
            let removed =
                self.parent(path, false).and_then(|(dir, name)| unlinkat(&dir, name, UnlinkatFlags::RemoveDir));
            match (removed, builder::parent(path)) {
                (Ok(()), Some(parent)) => path = parent,
                // Something is in it, or it is gone.
                _ => return,
            }
        }
    }
}

/// Makes something new with a name nobody has.
fn aside<T>(make: impl Fn(&OsStr) -> nix::Result<T>) -> io::Result<(T, OsString)> {
    for attempt in 0u32.. {
        let name = OsString::from(format!(".warren-apply-{}-{attempt}", std::process::id()));
        match make(&name) {
            Ok(made) => return Ok((made, name)),
            Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn is_name(name: &OsStr) -> bool {
    !name.is_empty() && name != "." && name != ".."
}

/// Opens a regular file; a pipe that took its place holds nobody up.
fn open_file(dir: impl AsFd, name: &OsStr) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(dir, name, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

/// Removes what may be there.
fn discard(dir: &OwnedFd, name: &OsStr) {
    if let Err(error) = unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)
        && error != Errno::ENOENT
    {
        tracing::debug!(%error, "a file stays behind");
    }
}

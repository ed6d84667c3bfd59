//! Files below a directory that is held open: nothing here follows a symbolic link out of it, whoever owns what is below.

use std::{
    ffi::{CStr, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::{
    NixPath,
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat},
    libc,
    sys::{
        stat::{Mode, UtimensatFlags, fstatat, mkdirat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat},
};

use crate::{Mtime, entry::MODE_MASK};

/// What `stat(2)` says of a path, as far as it is remembered; all zeros are no path's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stat {
    pub mode: u32,
    pub ino: u64,
    pub size: u64,
    pub mtime: Mtime,
    pub ctime: Mtime,
}

impl Stat {
    fn of(stat: &libc::statx) -> Self {
        let time = |time: libc::statx_timestamp| Mtime { secs: time.tv_sec, nanos: time.tv_nsec };
        Self {
            mode: u32::from(stat.stx_mode),
            ino: stat.stx_ino,
            size: stat.stx_size,
            mtime: time(stat.stx_mtime),
            ctime: time(stat.stx_ctime),
        }
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }

    pub(crate) fn is_file(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }

    pub(crate) fn is_symlink(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFLNK
    }

    pub(crate) fn bits(&self) -> u32 {
        self.mode & MODE_MASK
    }
}

/// Where a file is: its mount, and its device. Another directory bound there is another mount of the same device; a subvolume is another
/// device in the same mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Whereabouts {
    mount: u64,
    device: (u32, u32),
}

impl Whereabouts {
    fn of(stat: &libc::statx) -> Self {
        // A kernel before 5.8 does not tell: then devices are all there is.
        let mount = if stat.stx_mask & MNT_ID == 0 { 0 } else { stat.stx_mnt_id };
        Self { mount, device: (stat.stx_dev_major, stat.stx_dev_minor) }
    }
}

/// `STATX_MNT_ID` of `linux/stat.h`.
const MNT_ID: u32 = 0x1000;

/// Calls `statx(2)`, which does not follow a link at the end of the path.
fn statx(fd: BorrowedFd<'_>, path: &[u8]) -> Result<libc::statx, Errno> {
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH | libc::AT_NO_AUTOMOUNT;
    let mut stat = std::mem::MaybeUninit::<libc::statx>::zeroed();
    let outcome = path.with_nix_path(|path| {
        // SAFETY: the path ends with a NUL, the descriptor is open, and the kernel writes no more than the structure it is given.
        unsafe {
            let mask = libc::STATX_BASIC_STATS | MNT_ID;
            libc::syscall(libc::SYS_statx, fd.as_raw_fd(), path.as_ptr(), flags, mask, stat.as_mut_ptr())
        }
    })?;
    Errno::result(outcome)?;
    // SAFETY: every value of its fields is one, and it was zeroed before the kernel filled it.
    Ok(unsafe { stat.assume_init() })
}

/// A directory that is held open.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    whereabouts: Whereabouts,
}

const BENEATH: ResolveFlag =
    ResolveFlag::RESOLVE_BENEATH.union(ResolveFlag::RESOLVE_NO_SYMLINKS).union(ResolveFlag::RESOLVE_NO_MAGICLINKS);

impl Root {
    pub(crate) fn hold(fd: OwnedFd) -> io::Result<Self> {
        let whereabouts = Whereabouts::of(&statx(fd.as_fd(), b"")?);
        Ok(Self { fd, whereabouts })
    }

    /// Opens a directory by its absolute path without links.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        Self::hold(openat2(nix::fcntl::AT_FDCWD, path, how)?)
    }

    /// Opens a directory below it.
    pub(crate) fn directory(&self, path: &[u8]) -> io::Result<Self> {
        let path = if path.is_empty() { &b"."[..] } else { path };
        let how = OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).resolve(BENEATH);
        Self::hold(openat2(&self.fd, path, how)?)
    }

    /// Opens a regular file below it; anything else is an error.
    pub(crate) fn file(&self, path: &[u8]) -> io::Result<File> {
        // Nonblocking, so that a pipe that took the file's place does not hold us up.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = File::from(openat2(&self.fd, path, OpenHow::new().flags(flags).resolve(BENEATH))?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        Ok(file)
    }

    /// What is at a path, or nothing. What a directory in the middle of it leads to may be followed: nothing is read.
    pub(crate) fn stat(&self, path: &[u8]) -> io::Result<Option<Stat>> {
        Ok(self.stat_here(path)?.map(|(stat, _)| stat))
    }

    /// The same, and whether something else is mounted there: another filesystem, or another directory of the same one.
    pub(crate) fn stat_here(&self, path: &[u8]) -> io::Result<Option<(Stat, bool)>> {
        match statx(self.fd.as_fd(), path) {
            Ok(stat) => Ok(Some((Stat::of(&stat), Whereabouts::of(&stat) != self.whereabouts))),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Where a symbolic link leads.
    pub(crate) fn link(&self, path: &[u8]) -> io::Result<Vec<u8>> {
        Ok(readlinkat(&self.fd, path)?.as_bytes().to_vec())
    }

    /// The names in a directory below it, with what is known to be a directory.
    pub(crate) fn list(&self, path: &[u8]) -> io::Result<Vec<(Vec<u8>, bool)>> {
        let mut names = Vec::new();
        let mut dir = Dir::from_fd(self.directory(path)?.fd)?;
        for entry in dir.iter() {
            let entry = entry?;
            let name = CStr::to_bytes(entry.file_name());
            if name == b"." || name == b".." {
                continue;
            }
            let directory = match entry.file_type() {
                Some(kind) => kind == Type::Directory,
                None => fstatat(&self.fd, &join(path, name)[..], AtFlags::AT_SYMLINK_NOFOLLOW)
                    .is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR),
            };
            names.push((name.to_vec(), directory));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Makes a directory.
    pub(crate) fn make(&self, path: &[u8], mode: u32) -> io::Result<()> {
        Ok(mkdirat(&self.fd, path, Mode::from_bits_truncate(mode))?)
    }

    /// Sets a path's time, not following it.
    pub(crate) fn set_mtime(&self, path: &[u8], mtime: Mtime) -> io::Result<()> {
        let time = TimeSpec::new(mtime.secs, i64::from(mtime.nanos));
        let path = if path.is_empty() { &b"."[..] } else { path };
        Ok(utimensat(&self.fd, path, &TimeSpec::UTIME_OMIT, &time, UtimensatFlags::NoFollowSymlink)?)
    }

    /// Gives a path to its owner, not following it.
    pub(crate) fn own(&self, path: &[u8], owner: Option<(u32, u32)>) -> io::Result<()> {
        let Some((user, group)) = owner else { return Ok(()) };
        let path = if path.is_empty() { &b"."[..] } else { path };
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        Ok(fchownat(&self.fd, path, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)), flags)?)
    }

    /// Removes what is at a path with all below it, without entering what is mounted there; nothing there is fine.
    pub(crate) fn remove(&self, path: &[u8]) -> io::Result<()> {
        match unlinkat(&self.fd, path, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(Errno::EISDIR | Errno::EPERM) => {}
            Err(errno) => return Err(errno.into()),
        }
        let inside = self.directory(path)?;
        if inside.whereabouts != self.whereabouts {
            let text = format!("something is mounted at {}", OsStr::from_bytes(path).display());
            return Err(io::Error::other(text));
        }
        for (name, directory) in inside.list(b"")? {
            if directory {
                inside.remove(&name)?;
            } else {
                match unlinkat(&inside.fd, &name[..], UnlinkatFlags::NoRemoveDir) {
                    Ok(()) | Err(Errno::ENOENT) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        match unlinkat(&self.fd, path, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes an empty directory; whether it did.
    pub(crate) fn remove_empty(&self, path: &[u8]) -> io::Result<bool> {
        match unlinkat(&self.fd, path, UnlinkatFlags::RemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR | Errno::EBUSY) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Another descriptor of the same directory.
    pub(crate) fn as_owned(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Puts the directory's names on its disk.
    pub(crate) fn sync_names(&self) -> io::Result<()> {
        Ok(nix::unistd::fsync(&self.fd)?)
    }

    /// Puts everything of this filesystem on its disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open for as long as the call takes.
        Errno::result(unsafe { libc::syncfs(self.fd.as_raw_fd()) })?;
        Ok(())
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A name in a directory that may be the root.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        return name.to_vec();
    }
    [directory, b"/", name].concat()
}

/// The directory and the last name of a path.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// What is gone already need not be removed.
pub(crate) fn gone_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

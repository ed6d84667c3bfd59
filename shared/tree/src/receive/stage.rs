//! The **stage**: the directory beside a workspace in which its new files are made, which is root's alone until it is whole.

use std::{
    fs::{File, Permissions},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::stat::{FchmodatFlags, Mode, fchmodat},
    unistd::{linkat, symlinkat},
};

use super::{Old, Source, drain, place::root_mtime, plan::Plan};
use crate::{
    GuestError, Transfer,
    error::broken,
    files::Root,
    row::{Kind, Row},
    site::Site,
    wire::{Tag, Whole},
};

/// How much is moved at once, in bytes.
const CHUNK: usize = 256 * 1024;
/// The mode of a workspace's own directory when it is new.
const ROOT_MODE: u32 = 0o755;

/// The stage.
pub(super) struct Stage<'a> {
    dir: Root,
    /// The workspace, as it was asked for.
    shown: String,
    owner: Option<(u32, u32)>,
    /// The process's umask takes bits away, so that modes have to be set again.
    masked: bool,
    watch: &'a Transfer,
}

impl<'a> Stage<'a> {
    pub(super) fn make(
        site: &Site,
        name: &[u8],
        owner: Option<(u32, u32)>,
        watch: &'a Transfer,
    ) -> Result<Self, GuestError> {
        let make = || {
            let (parent, held);
            if site.is_mount().map_err(io::Error::other)? {
                held = Root::open(&site.path)?;
                parent = &held;
            } else {
                parent = &site.parent;
            }
            parent.make(name, 0o700)?;
            let dir = parent.directory(name)?;
            dir.make(b"0", 0o777)?;
            let masked = dir.stat(b"0")?.is_none_or(|stat| stat.bits() != 0o777);
            dir.remove_empty(b"0")?;
            Ok((dir, masked))
        };
        let (dir, masked) = make().map_err(GuestError::files("making a directory for the new tree"))?;
        Ok(Self { dir, shown: site.shown.clone(), owner, masked, watch })
    }

    pub(super) fn inode(&self) -> Result<u64, GuestError> {
        let stat = self.dir.stat(b"").map_err(GuestError::files("looking at the new tree"))?;
        Ok(stat.unwrap_or_default().ino)
    }

    /// Remembers what linking changed of the old tree's files, so that only what others do to them is a change.
    pub(super) fn note_links(&self, rows: &[Row], plan: &Plan, old: &mut Old) -> Result<(), GuestError> {
        for (row, source) in rows.iter().zip(&plan.sources) {
            let Source::Link(from) = source else { continue };
            let stat = self.dir.stat(&row.path).map_err(GuestError::files("looking at the new tree"))?;
            let known = &mut old.base.stats[*from];
            if let Some(stat) = stat.filter(|stat| stat.ino == known.ino) {
                known.ctime = stat.ctime;
            }
        }
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), GuestError> {
        self.dir.sync().map_err(GuestError::files("writing the new tree to the disk"))
    }

    /// Makes all of a tree that the client does not send.
    pub(super) fn tree(&self, rows: &[Row], plan: &Plan, old: Option<&Old>) -> Result<(), GuestError> {
        self.local(rows, plan, old, |index| rows[index].path.clone(), true)
    }

    /// Makes the same of the rows that do not stay, each under its number, without directories.
    pub(super) fn flat(&self, rows: &[Row], plan: &Plan, old: Option<&Old>) -> Result<(), GuestError> {
        self.local(rows, plan, old, |index| index.to_string().into_bytes(), false)
    }

    fn local(
        &self,
        rows: &[Row],
        plan: &Plan,
        old: Option<&Old>,
        name: impl Fn(usize) -> Vec<u8>,
        directories: bool,
    ) -> Result<(), GuestError> {
        for (index, (row, source)) in rows.iter().zip(&plan.sources).enumerate() {
            if index.is_multiple_of(256) && self.watch.is_aborted() {
                return Err(GuestError::Aborted);
            }
            if matches!(source, Source::Want | Source::Stay) {
                continue;
            }
            let made = match (&row.kind, source, old) {
                (Kind::Directory { .. }, ..) if !directories => Ok(()),
                // Its own mode and owner come when everything is in it.
                (Kind::Directory { .. }, ..) => self.dir.make(&name(index), 0o700),
                (Kind::Symlink { target }, ..) => self.link(&name(index), target, row),
                (_, Source::Link(from), Some(old)) => self.same(&name(index), row, *from, old),
                (_, Source::Copy(from), Some(old)) => self.copy(&name(index), row, *from, old),
                _ => self.file(&name(index), row, &mut io::empty(), &mut []),
            };
            made.map_err(|error| match source {
                Source::Link(_) | Source::Copy(_) if is_change(&error) => GuestError::Raced {
                    path: self.shown.clone(),
                    what: contract::FileName(row.path.clone()).to_string(),
                },
                _ => wrote(row, error),
            })?;
        }
        Ok(())
    }

    /// Takes contents off the stream: all that the plan wants, in order.
    pub(super) fn contents(
        &self,
        from: &mut impl Read,
        rows: &[Row],
        plan: &Plan,
        name: impl Fn(usize) -> Vec<u8>,
    ) -> Result<(u64, u64), GuestError> {
        let wanted = || rows.iter().enumerate().filter(|(index, _)| plan.sources[*index] == Source::Want);
        let total = wanted().map(|(_, row)| row.kind.size()).sum();
        self.watch.begin("receiving", total);
        let mut whole = Whole::new(from, Tag::Content);
        let mut buffer = vec![0; CHUNK];
        let mut files = 0;
        let outcome = (|| {
            let mut decoder = zstd::Decoder::new(&mut whole).map_err(GuestError::Stream)?.single_frame();
            for (index, row) in wanted() {
                if self.watch.is_aborted() {
                    return Err(GuestError::Aborted);
                }
                self.file(&name(index), row, &mut decoder, &mut buffer).map_err(|error| received(row, error))?;
                files += 1;
            }
            // The checksum is behind the last byte.
            match decoder.read(&mut buffer[..1]).map_err(broken)? {
                0 => Ok(()),
                _ => Err(GuestError::Protocol("there is more content than it says")),
            }
        })();
        if let Some(why) = whole.failed.take() {
            return Err(GuestError::Client(why));
        }
        outcome?;
        drain(&mut whole)?;
        Ok((files, total))
    }

    /// A regular file with what comes from `from`.
    fn file(&self, name: &[u8], row: &Row, from: &mut impl Read, buffer: &mut [u8]) -> io::Result<()> {
        let Kind::File { mode, size, .. } = row.kind else { return Err(io::ErrorKind::InvalidInput.into()) };
        let mut file = self.create(name, mode)?;
        let mut left = size;
        while left > 0 {
            let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            from.read_exact(&mut buffer[..count]).map_err(FromClient::wrap)?;
            file.write_all(&buffer[..count])?;
            left -= count as u64;
            self.watch.add(count as u64);
        }
        self.finish(&file, mode, row)
    }

    fn create(&self, name: &[u8], mode: u32) -> io::Result<File> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(File::from(openat(&self.dir, name, flags, Mode::from_bits_truncate(mode))?))
    }

    /// Gives a file its owner, mode and time, as few of them as it lacks.
    fn finish(&self, file: &File, mode: u32, row: &Row) -> io::Result<()> {
        if let Some((user, group)) = self.owner
            && (user, group) != own()
        {
            std::os::unix::fs::fchown(file, Some(user), Some(group))?;
        }
        if self.masked {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        set_mtime(file, row)
    }

    fn link(&self, name: &[u8], target: &[u8], row: &Row) -> io::Result<()> {
        symlinkat(target, &self.dir, name)?;
        self.dir.own(name, self.owner)?;
        self.dir.set_mtime(name, row.mtime)
    }

    /// A hard link to what the old tree has, if that is still what was seen there.
    fn same(&self, name: &[u8], row: &Row, from: usize, old: &Old) -> io::Result<()> {
        let path = &old.base.rows[from].path[..];
        match linkat(&old.root, path, &self.dir, name, AtFlags::empty()) {
            Ok(()) => {}
            // A file may have only so many links, and some filesystems know none.
            Err(Errno::EMLINK | Errno::EPERM | Errno::EXDEV) => return self.copy(name, row, from, old),
            Err(errno) => return Err(errno.into()),
        }
        let (stat, known) = (self.dir.stat(name)?.unwrap_or_default(), &old.base.stats[from]);
        if (stat.ino, stat.size, stat.mtime, stat.mode) != (known.ino, known.size, known.mtime, known.mode) {
            return Err(io::Error::other(Changed));
        }
        Ok(())
    }

    /// A copy of what the old tree has.
    fn copy(&self, name: &[u8], row: &Row, from: usize, old: &Old) -> io::Result<()> {
        let Kind::File { mode, size, .. } = row.kind else { return Err(io::ErrorKind::InvalidInput.into()) };
        let mut source = old.root.file(&old.base.rows[from].path)?;
        let mut file = self.create(name, mode)?;
        // Within the kernel, shared where the filesystem can.
        let copied = io::copy(&mut source, &mut file)?;
        let now = source.metadata()?;
        let known = &old.scan.stat(&old.base, from);
        if copied != size || crate::Mtime::of(&now) != known.mtime {
            return Err(io::Error::other(Changed));
        }
        self.finish(&file, mode, row)
    }

    /// Gives the directories of a whole tree their owners, modes and times, the deepest first, and the root its own.
    pub(super) fn settle(&self, rows: &[Row], old: Option<&Root>) -> Result<(), GuestError> {
        for row in rows.iter().rev() {
            let Kind::Directory { mode } = row.kind else { continue };
            self.directory(&row.path, mode)
                .and_then(|()| self.dir.set_mtime(&row.path, row.mtime))
                .map_err(|source| wrote(row, source))?;
        }
        let root = || {
            let mode = match old {
                Some(old) => old.stat(b"")?.map_or(ROOT_MODE, |stat| stat.bits()),
                None => ROOT_MODE,
            };
            self.directory(b".", mode)?;
            self.dir.set_mtime(b"", root_mtime(rows))
        };
        root().map_err(GuestError::files("finishing the new tree"))
    }

    fn directory(&self, path: &[u8], mode: u32) -> io::Result<()> {
        if self.owner.is_some_and(|owner| owner != own()) {
            self.dir.own(path, self.owner)?;
        }
        Ok(fchmodat(&self.dir, path, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)?)
    }
}

/// The process's own user and group: what it makes is theirs.
fn own() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}

fn set_mtime(file: &File, row: &Row) -> io::Result<()> {
    use nix::sys::{stat::futimens, time::TimeSpec};
    let time = TimeSpec::new(row.mtime.secs, i64::from(row.mtime.nanos));
    Ok(futimens(file, &TimeSpec::UTIME_OMIT, &time)?)
}

fn wrote(row: &Row, source: io::Error) -> GuestError {
    GuestError::Files { what: format!("writing {}", contract::FileName(row.path.clone())), source }
}

/// What was taken from the old tree is not what was seen there.
#[derive(Debug, thiserror::Error)]
#[error("it was changed while the new tree was made")]
struct Changed;

/// Whether a file of the old tree changed, or went.
fn is_change(error: &io::Error) -> bool {
    crate::scan::is_gone(error) || error.get_ref().is_some_and(|inner| inner.is::<Changed>())
}

/// An error of the stream rather than of the file it goes to.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct FromClient(io::Error);

impl FromClient {
    fn wrap(error: io::Error) -> io::Error {
        io::Error::other(Self(error))
    }
}

fn received(row: &Row, error: io::Error) -> GuestError {
    if error.get_ref().is_some_and(|inner| inner.is::<FromClient>()) {
        return match error.downcast::<FromClient>() {
            Ok(FromClient(error)) => broken(error),
            Err(error) => GuestError::Stream(error),
        };
    }
    wrote(row, error)
}

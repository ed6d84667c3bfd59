//! The **content** of an upload, as it is read here: from its beginning, or from where a host has it up to.

use std::{
    fs::{File, Metadata},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use archive::{
    prefix::Prefix,
    program,
    sparse::{self, Sender},
};
use bus::ByteStream;
use contract::{ApiError, ErrorCode};
use tokio::{io::AsyncWriteExt, runtime::Handle};

/// What is to be sent.
pub(super) enum Content {
    /// Standard input; whether some of it was read already.
    Input { read: bool },
    /// A file as it is.
    File { path: PathBuf, proven: Option<(Stamp, Prefix)> },
    /// A directory, as an archive.
    Directory(PathBuf),
    /// Files and directories of a kernel, as one archive.
    Kernel(Vec<PathBuf>),
}

/// What changes when a file is written to.
type Stamp = (u64, i64, i64, i64, i64);

/// Where a host has it up to.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    pub(super) at: u64,
    /// The digest of what is before; none where nothing is.
    pub(super) digest: Option<String>,
}

/// Why it was not sent.
#[derive(Debug)]
pub(super) enum Unsent {
    /// It cannot be read here.
    Here(ApiError),
    /// The host took no more.
    There(io::Error),
}

pub(super) fn unreadable(path: &Path, error: &io::Error) -> ApiError {
    ApiError::invalid_argument(format!("{} cannot be read: {error}", path.display()))
        .hint("it is looked for on this machine; the command's help tells how to name a file of a host")
}

fn changed(what: &str) -> ApiError {
    ApiError::new(ErrorCode::Aborted, format!("{what} changed while it was read"))
        .hint("something writes there; do it again when nothing does")
}

fn stamp(file: &Metadata) -> Stamp {
    (file.len(), file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec())
}

/// A byte stream as a thread writes it; remembers that it was the stream that failed.
struct Outgoing {
    stream: ByteStream,
    runtime: Handle,
    failed: bool,
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.runtime.block_on(self.stream.write(bytes)).inspect_err(|_| self.failed = true)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.runtime.block_on(self.stream.flush()).inspect_err(|_| self.failed = true)
    }
}

impl Content {
    /// Sends it from there on, in its sparse form, and hears how that ended. Blocking, on the runtime's threads for that.
    pub(super) fn send(&mut self, stream: ByteStream, from: &Held) -> Result<(), Unsent> {
        let runtime = Handle::current();
        let mut outgoing = Outgoing { stream, runtime: runtime.clone(), failed: false };
        match self.written(&mut outgoing, from) {
            Ok(()) => {}
            Err(error @ Unsent::There(_)) => return Err(error),
            Err(Unsent::Here(error)) => {
                let reason = error.message.clone();
                runtime.block_on(outgoing.stream.reset(reason));
                return Err(Unsent::Here(error));
            }
        }
        let mut stream = outgoing.stream;
        let ended = runtime.block_on(async {
            stream.shutdown().await?;
            // The host says nothing but how it ended.
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
            stream.closed().await;
            Ok(())
        });
        ended.map_err(Unsent::There)
    }

    fn written(&mut self, outgoing: &mut Outgoing, from: &Held) -> Result<(), Unsent> {
        if let Self::File { path, proven } = self {
            return file(path, proven, outgoing, from);
        }
        let sender = Sender::from(outgoing, from.at).map_err(Unsent::There)?;
        let mut onward = Onward { sender, skipped: Prefix::default(), at: 0, from };
        let (written, what) = match self {
            Self::Input { read } => {
                if std::mem::replace(read, true) || from.at > 0 {
                    let error = ApiError::unavailable("the upload broke off, and standard input cannot be read again");
                    return Err(Unsent::Here(
                        error.hint("do it again; of a file, an upload goes on where it broke off"),
                    ));
                }
                (input(&mut onward), "standard input".to_owned())
            }
            Self::Directory(path) => (directory(&mut onward, path), path.display().to_string()),
            Self::Kernel(files) => (kernel(&mut onward, files), "one of the files".to_owned()),
            Self::File { .. } => return Ok(()),
        };
        if onward.sender.get_ref().failed
            && let Err(Wrong::Io(_, error)) = written
        {
            return Err(Unsent::There(error));
        }
        let differs = onward.differs();
        match written {
            _ if differs => Err(Unsent::Here(changed(&what))),
            Ok(()) => {
                let length = onward.sender.written();
                onward.sender.finish(length).map(drop).map_err(Unsent::There)
            }
            Err(Wrong::Io(path, error)) => Err(Unsent::Here(unreadable(&path, &error))),
            Err(Wrong::Told(error)) => Err(Unsent::Here(error)),
        }
    }
}

/// Sends a file, or the rest of one that still is what it was.
fn file(path: &Path, proven: &mut Option<(Stamp, Prefix)>, outgoing: &mut Outgoing, from: &Held) -> Result<(), Unsent> {
    let here = |error: io::Error| Unsent::Here(unreadable(path, &error));
    let changed = || Unsent::Here(changed(&path.display().to_string()));
    let file = File::open(path).map_err(here)?;
    let before = stamp(&file.metadata().map_err(here)?);
    let (seen, prefix) = proven.get_or_insert_with(|| (before, Prefix::default()));
    if *seen != before || from.at > before.0 {
        return Err(changed());
    }
    if let Some(digest) = &from.digest {
        if prefix.reached() > from.at {
            *prefix = Prefix::default();
        }
        let begin = prefix.reached();
        let take = |at: u64, bytes: &[u8]| {
            prefix.take(at, bytes);
            Ok(())
        };
        sparse::data_between(&file, begin, from.at, take).map_err(here)?;
        prefix.take(from.at, &[]);
        if prefix.digest() != *digest {
            return Err(changed());
        }
    }
    let mut sender = Sender::from(outgoing, from.at).map_err(Unsent::There)?;
    let length = match sender.file(&file, |_| ()) {
        Ok(length) => length,
        Err(error) if sender.get_ref().failed => return Err(Unsent::There(error)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(changed()),
        Err(error) => return Err(here(error)),
    };
    if length != before.0 || stamp(&file.metadata().map_err(here)?) != before {
        return Err(changed());
    }
    sender.finish(length).map(drop).map_err(Unsent::There)
}

/// Why an archive was not written.
enum Wrong {
    /// Of which file, or the stream's.
    Io(PathBuf, io::Error),
    Told(ApiError),
}

/// Leaves out what the host has, and looks whether it is that.
struct Onward<'a> {
    sender: Sender<&'a mut Outgoing>,
    skipped: Prefix,
    at: u64,
    from: &'a Held,
}

impl Onward<'_> {
    /// Whether what was left out is not what the host has.
    fn differs(&self) -> bool {
        let digest = |wanted: &String| self.at < self.from.at || self.skipped.digest() != *wanted;
        self.from.digest.as_ref().is_some_and(digest)
    }
}

impl Write for Onward<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = usize::try_from(self.from.at - self.at).unwrap_or(usize::MAX);
        if left == 0 {
            return self.sender.write(bytes);
        }
        let count = bytes.len().min(left);
        self.skipped.take(self.at, &bytes[..count]);
        self.at += count as u64;
        if self.at == self.from.at && self.differs() {
            return Err(io::Error::other("it is another one now"));
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sender.flush()
    }
}

fn input(to: &mut Onward<'_>) -> Result<(), Wrong> {
    let copied = io::copy(&mut io::stdin().lock(), to);
    copied.map(drop).map_err(|error| Wrong::Io("standard input".into(), error))
}

/// Writes a directory as an archive.
fn directory(to: &mut Onward<'_>, path: &Path) -> Result<(), Wrong> {
    let failed = |error: io::Error| Wrong::Told(ApiError::internal(format!("tar cannot be run: {error}")));
    let mut child = program::whole(path).spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Wrong::Told(ApiError::failed_precondition("this machine lacks tar")),
        _ => failed(error),
    })?;
    let (Some(mut archive), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(failed(io::ErrorKind::BrokenPipe.into()));
    };
    let complaint = std::thread::spawn(move || program::complaint(stderr));
    let sent = io::copy(&mut archive, to);
    drop(archive);
    let ended = child.wait().map_err(failed)?;
    let complaint = complaint.join().unwrap_or_default();
    sent.map_err(|error| Wrong::Io(path.to_owned(), error))?;
    match ended.code() {
        Some(0) => Ok(()),
        Some(program::CHANGED) => Err(Wrong::Told(changed(&path.display().to_string()))),
        _ => Err(Wrong::Told(ApiError::failed_precondition(format!("{} cannot be read: {complaint}", path.display())))),
    }
}

/// Writes files of a kernel as one archive. What a kernel consists of is for the host to find in them.
fn kernel(to: &mut Onward<'_>, files: &[PathBuf]) -> Result<(), Wrong> {
    let mut archive = tar::Builder::new(to);
    // Links are left out by the host: what they lead to is not what was given.
    archive.follow_symlinks(false);
    for path in files {
        append(&mut archive, path).map_err(|error| Wrong::Io(path.clone(), error))?;
    }
    let ended = archive.into_inner().map(drop);
    ended.map_err(|error| Wrong::Io("the archive's end".into(), error))
}

fn append(archive: &mut tar::Builder<&mut Onward<'_>>, path: &Path) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default();
    if !path.is_dir() {
        let mut file = File::open(path)?;
        return archive.append_file(name, &mut file);
    }
    // A release's modules have their release from where they stand; any other directory holds a package's files.
    let of_modules = path.parent().and_then(Path::file_name).is_some_and(|parent| parent == "modules");
    let prefix = if of_modules { Path::new("lib/modules").join(name) } else { PathBuf::new() };
    archive.append_dir_all(prefix, path)
}

//! An **upload**: files of this machine sent to the host that imports them, as one tar archive. What a kernel consists of is for that host to
//! find in them.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use bus::ByteStream;
use contract::{
    ApiError, SessionId,
    kernel::{KernelSource, LABEL_MAX},
};
use tokio::{io::AsyncWriteExt, runtime::Handle, task::JoinHandle};

use crate::client::Client;

/// How long the import may wait for its turn and its host before it takes the files.
const PATIENCE: Duration = Duration::from_secs(600);

/// Files to be sent.
pub(super) struct Upload {
    files: Vec<PathBuf>,
    label: String,
}

/// Files on their way.
pub(super) struct Sending(JoinHandle<Result<(), Unsent>>);

/// Why files were not sent.
#[derive(Debug)]
enum Unsent {
    /// One cannot be read here.
    Here(PathBuf, io::Error),
    /// The host took no more.
    There(io::Error),
}

impl Unsent {
    fn told(self) -> ApiError {
        match self {
            Self::Here(path, error) => unreadable(&path, &error),
            Self::There(error) => ApiError::unavailable(format!("the files were not taken to their end: {error}"))
                .hint("import them again"),
        }
    }
}

fn unreadable(path: &Path, error: &io::Error) -> ApiError {
    ApiError::invalid_argument(format!("{} cannot be read: {error}", path.display()))
        .hint("give files of this machine; --host-path names those of a host")
}

impl Upload {
    /// Looks at the files.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub(super) fn of(files: Vec<PathBuf>) -> Result<Self, ApiError> {
        for path in &files {
            let looked = if path.is_dir() { path.read_dir().map(drop) } else { File::open(path).map(drop) };
            looked.map_err(|error| unreadable(path, &error))?;
        }
        let names = files.iter().map(|path| path.file_name().unwrap_or(OsStr::new("files")).to_string_lossy());
        let mut label = names.collect::<Vec<_>>().join(", ").replace(char::is_control, "?");
        while label.len() > LABEL_MAX {
            label.pop();
        }
        Ok(Self { files, label })
    }

    /// Opens the stream and begins to send; nothing is taken before the import begins.
    ///
    /// # Errors
    /// The connection is closed.
    pub(super) async fn begin(self, client: &Client) -> Result<(KernelSource, Sending), ApiError> {
        let session = SessionId::new();
        let stream = ByteStream::open_within(client.bus(), session, PATIENCE).await?;
        let source = KernelSource::Upload { session, label: self.label };
        let files = self.files;
        Ok((source, Sending(tokio::task::spawn_blocking(move || send(stream, &files)))))
    }
}

impl Sending {
    /// Waits until all is sent.
    ///
    /// # Errors
    /// It was not.
    pub(super) async fn end(self) -> Result<(), ApiError> {
        let sent = self.0.await.map_err(|error| ApiError::internal(format!("the files were not sent: {error}")))?;
        sent.map_err(Unsent::told)
    }

    /// What went wrong here, if something did.
    pub(super) async fn failure(self) -> Option<ApiError> {
        // The host has ended the stream when its import failed, so this is over or about to be.
        let ended = tokio::time::timeout(Duration::from_secs(5), self.0).await;
        match ended {
            Ok(Ok(Err(error @ Unsent::Here(..)))) => Some(error.told()),
            _ => None,
        }
    }
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

fn send(stream: ByteStream, files: &[PathBuf]) -> Result<(), Unsent> {
    let runtime = Handle::current();
    let mut archive = tar::Builder::new(Outgoing { stream, runtime: runtime.clone(), failed: false });
    // Links are left out by the host: what they lead to is not what was given.
    archive.follow_symlinks(false);
    for path in files {
        if let Err(error) = append(&mut archive, path) {
            return Err(match archive.get_ref().failed {
                true => Unsent::There(error),
                false => Unsent::Here(path.clone(), error),
            });
        }
    }
    let mut stream = archive.into_inner().map_err(Unsent::There)?.stream;
    let ended = runtime.block_on(async {
        stream.shutdown().await?;
        // The host says nothing but how it ended.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        stream.closed().await;
        Ok(())
    });
    ended.map_err(Unsent::There)
}

fn append(archive: &mut tar::Builder<Outgoing>, path: &Path) -> io::Result<()> {
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

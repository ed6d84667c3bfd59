//! An **upload**: a file or a directory of this machine, sent to the host that makes an image of it.

use std::{
    fs::{File, Metadata},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use archive::{program, sparse::Sender};
use bus::ByteStream;
use contract::{
    ApiError, ErrorCode, SessionId, deadline,
    image::{FileSource, LABEL_MAX},
    operation::{self, Operation, OperationRef},
};
use tokio::{io::AsyncWriteExt, runtime::Handle, task::JoinHandle};

use super::here;
use crate::{
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
    wait,
};

/// How long it may wait for its turn and its host before anything is taken.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);
/// How long what was wrong here is waited for, once the operation has failed.
pub(super) const TOLD: Duration = Duration::from_secs(5);

/// What is to be sent.
pub(super) struct Upload {
    /// None: standard input.
    path: Option<PathBuf>,
    label: String,
}

/// What is on its way.
pub(super) struct Sending(JoinHandle<Result<(), Unsent>>);

/// Why it was not sent.
#[derive(Debug)]
enum Unsent {
    /// It cannot be read here.
    Here(ApiError),
    /// The host took no more.
    There(io::Error),
}

impl Unsent {
    fn told(self) -> ApiError {
        match self {
            Self::Here(error) => error,
            Self::There(error) => {
                ApiError::unavailable(format!("the upload was not taken to its end: {error}")).hint("begin it again")
            }
        }
    }
}

fn unreadable(path: &Path, error: &io::Error) -> ApiError {
    ApiError::invalid_argument(format!("{} cannot be read: {error}", path.display()))
        .hint("it is looked for on this machine; host:/PATH names a file of a host")
}

fn changed(path: &Path) -> ApiError {
    ApiError::new(ErrorCode::Aborted, format!("{} changed while it was read", path.display()))
        .hint("something writes there; do it again when nothing does")
}

impl Upload {
    /// Looks at a file or a directory.
    ///
    /// # Errors
    /// It cannot be read, or is neither.
    pub(super) fn of(path: &Path) -> Result<Self, ApiError> {
        let kind = path.metadata().map_err(|error| unreadable(path, &error))?;
        if kind.is_dir() {
            path.read_dir().map_err(|error| unreadable(path, &error))?;
        } else if kind.is_file() {
            File::open(path).map_err(|error| unreadable(path, &error))?;
        } else {
            return Err(ApiError::invalid_argument(format!("{} is neither a file nor a directory", path.display())));
        }
        let name = path.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        let mut label = name.unwrap_or_else(|| "/".to_owned()).replace(char::is_control, "?");
        while label.len() > LABEL_MAX {
            label.pop();
        }
        Ok(Self { path: Some(path.to_owned()), label })
    }

    /// Takes what comes on standard input.
    pub(super) fn of_input() -> Self {
        Self { path: None, label: "-".to_owned() }
    }

    /// Whether it is a directory.
    pub(super) fn is_directory(&self) -> bool {
        self.path.as_ref().is_some_and(|path| path.is_dir())
    }

    /// Opens the stream and begins to send; nothing is taken before the host begins.
    ///
    /// # Errors
    /// The connection is closed.
    pub(super) async fn begin(self, client: &Client) -> Result<(FileSource, Sending), ApiError> {
        let session = SessionId::new();
        let stream = ByteStream::open_within(client.bus(), session, PATIENCE).await?;
        let (path, label) = (self.path, self.label);
        let sending = Sending(tokio::task::spawn_blocking(move || send(stream, path.as_deref())));
        Ok((FileSource::Upload { session, label }, sending))
    }
}

impl Sending {
    async fn end(self) -> Result<(), ApiError> {
        let sent = self.0.await.map_err(|error| ApiError::internal(format!("the upload failed: {error}")))?;
        sent.map_err(Unsent::told)
    }

    /// What went wrong here, if something did.
    async fn failure(self) -> Option<ApiError> {
        // The host has ended the stream when its operation failed, so this is over or about to be.
        match tokio::time::timeout(TOLD, self.0).await {
            Ok(Ok(Err(Unsent::Here(error)))) => Some(error),
            _ => None,
        }
    }
}

/// A byte stream as a thread writes it.
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

fn send(stream: ByteStream, path: Option<&Path>) -> Result<(), Unsent> {
    let runtime = Handle::current();
    let outgoing = Outgoing { stream, runtime: runtime.clone(), failed: false };
    let mut sender = Sender::new(outgoing).map_err(Unsent::There)?;
    let length = match path {
        None => input(&mut sender)?,
        Some(path) if path.is_dir() => directory(&mut sender, path)?,
        Some(path) => file(&mut sender, path)?,
    };
    let mut stream = sender.finish(length).map_err(Unsent::There)?.stream;
    let ended = runtime.block_on(async {
        stream.shutdown().await?;
        // The host says nothing but how it ended.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        stream.closed().await;
        Ok(())
    });
    ended.map_err(Unsent::There)
}

fn input(sender: &mut Sender<Outgoing>) -> Result<u64, Unsent> {
    match io::copy(&mut io::stdin().lock(), sender) {
        Ok(_) => Ok(sender.written()),
        Err(error) if sender.get_ref().failed => Err(Unsent::There(error)),
        Err(error) => Err(Unsent::Here(ApiError::invalid_argument(format!("standard input cannot be read: {error}")))),
    }
}

fn file(sender: &mut Sender<Outgoing>, path: &Path) -> Result<u64, Unsent> {
    let here = |error: io::Error| Unsent::Here(unreadable(path, &error));
    let file = File::open(path).map_err(here)?;
    let before = file.metadata().map_err(here)?;
    let sent = sender.file(&file, |_| ());
    let length = match sent {
        Ok(length) => length,
        Err(error) if sender.get_ref().failed => return Err(Unsent::There(error)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Unsent::Here(changed(path))),
        Err(error) => return Err(here(error)),
    };
    let after = file.metadata().map_err(here)?;
    if length != before.len() || stamp(&before) != stamp(&after) {
        return Err(Unsent::Here(changed(path)));
    }
    Ok(length)
}

/// What changes when a file is written to.
fn stamp(file: &Metadata) -> (u64, i64, i64, i64, i64) {
    (file.len(), file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec())
}

/// Sends a directory as an archive; gives the archive's length.
fn directory(sender: &mut Sender<Outgoing>, path: &Path) -> Result<u64, Unsent> {
    let failed = |error: io::Error| Unsent::Here(ApiError::internal(format!("tar cannot be run: {error}")));
    let mut child = program::whole(path).spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Unsent::Here(ApiError::failed_precondition("this machine lacks tar")),
        _ => failed(error),
    })?;
    let (Some(mut archive), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(failed(io::ErrorKind::BrokenPipe.into()));
    };
    let complaint = std::thread::spawn(move || program::complaint(stderr));
    let sent = io::copy(&mut archive, sender);
    drop(archive);
    let ended = child.wait().map_err(failed)?;
    let complaint = complaint.join().unwrap_or_default();
    if let Err(error) = sent {
        return Err(Unsent::There(error));
    }
    match ended.code() {
        Some(0) => Ok(sender.written()),
        Some(program::CHANGED) => Err(Unsent::Here(changed(path))),
        _ => {
            Err(Unsent::Here(ApiError::failed_precondition(format!("{} cannot be read: {complaint}", path.display()))))
        }
    }
}

/// Waits for the operation that makes the image while it is sent, and shows the image. Ctrl-C calls it off: without this process nothing comes
/// any more.
pub(super) async fn made(
    client: &Client,
    operation: Operation,
    sending: Option<Sending>,
    format: Format,
    no_wait: bool,
) -> Result<Outcome, Failure> {
    let shown = async |ended: Operation| here(&ended);
    let Some(sending) = sending else { return wait::settle(client, operation, format, no_wait, shown).await };
    if no_wait {
        // It is this process's to send, even if the end is not waited for.
        sending.end().await?;
        return wait::settle(client, operation, format, true, shown).await;
    }
    let ended = watched(client, operation, format).await?;
    let succeeded = match wait::succeeded(ended) {
        Ok(operation) => operation,
        // What went wrong here says more than that the file did not come.
        Err(error) => return Err(sending.failure().await.unwrap_or(error).into()),
    };
    match format {
        Format::Json => output::json(&succeeded)?,
        Format::Table => shown(succeeded).await?,
    }
    Ok(Outcome::Done)
}

/// Waits for an operation's end; Ctrl-C calls it off, and its end is still waited for.
pub(super) async fn watched(client: &Client, operation: Operation, format: Format) -> Result<Operation, Failure> {
    let id = operation.id;
    let mut ended = Box::pin(wait::shown(client, operation, format));
    tokio::select! {
        ended = &mut ended => return ended,
        interrupted = tokio::signal::ctrl_c() => {
            if let Err(error) = interrupted {
                tracing::warn!(%error, "Ctrl-C cannot be seen");
                return ended.await;
            }
        }
    }
    output::note("calling it off");
    match client.change::<operation::Cancel>(&OperationRef { id }, deadline::QUICK).await {
        // It has ended by itself.
        Err(error) if error.code == ErrorCode::FailedPrecondition => {}
        Err(error) => output::note(&output::clean(&format!("it cannot be called off: {}", error.message))),
        Ok(_) => {}
    }
    ended.await
}

//! An **upload**: files of this machine, sent to the host that makes an image or a kernel of them. Where the line breaks or the host's agent is started
//! anew, it goes on where that host has it up to (`contract::upload`).

mod content;

use std::{
    ffi::OsStr,
    fs::File,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use bus::ByteStream;
use contract::{
    ApiError, ErrorCode, SessionId, deadline,
    operation::{self, Operation, OperationRef},
    upload::Place,
};
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
    wait,
};
use content::{Content, Held, Unsent, unreadable};

/// How long it may wait for its turn and its host before anything is taken, and for its host to come back.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// How long what was wrong here is waited for, once the operation has failed.
pub const TOLD: Duration = Duration::from_secs(5);
/// How often in a row it may break off without a byte gained: a line that does carries nothing.
const TRIES: u32 = 10;
/// The pause before a host that does not await it is asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// What is to be sent.
pub struct Upload {
    content: Content,
    label: String,
}

/// An upload whose host may begin.
pub struct Opened {
    content: Content,
    session: SessionId,
    /// None: it was begun by another process, and goes on.
    stream: Option<ByteStream>,
}

/// What is on its way.
pub struct Sending(JoinHandle<Result<(), Unsent>>);

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

fn label(names: &str, most: usize) -> String {
    let mut label = names.replace(char::is_control, "?");
    while label.len() > most {
        label.pop();
    }
    label
}

impl Upload {
    /// Looks at a file or a directory of which an image is made.
    ///
    /// # Errors
    /// It cannot be read, or is neither.
    pub fn of(path: &Path) -> Result<Self, ApiError> {
        let kind = path.metadata().map_err(|error| unreadable(path, &error))?;
        let content = if kind.is_dir() {
            path.read_dir().map_err(|error| unreadable(path, &error))?;
            Content::Directory(path.to_owned())
        } else if kind.is_file() {
            File::open(path).map_err(|error| unreadable(path, &error))?;
            Content::File { path: path.to_owned(), proven: None }
        } else {
            return Err(ApiError::invalid_argument(format!("{} is neither a file nor a directory", path.display())));
        };
        let name = path.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        let label = label(&name.unwrap_or_else(|| "/".to_owned()), contract::image::LABEL_MAX);
        Ok(Self { content, label })
    }

    /// Takes what comes on standard input.
    pub fn of_input() -> Self {
        Self { content: Content::Input { read: false }, label: "-".to_owned() }
    }

    /// Looks at the files of a kernel.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn of_kernel(files: Vec<PathBuf>) -> Result<Self, ApiError> {
        for path in &files {
            let looked = if path.is_dir() { path.read_dir().map(drop) } else { File::open(path).map(drop) };
            looked.map_err(|error| unreadable(path, &error))?;
        }
        let names = files.iter().map(|path| path.file_name().unwrap_or(OsStr::new("files")).to_string_lossy());
        let label = label(&names.collect::<Vec<_>>().join(", "), contract::kernel::LABEL_MAX);
        Ok(Self { content: Content::Kernel(files), label })
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        matches!(self.content, Content::Directory(_))
    }

    /// Opens the stream. With it, how it is announced, and what it is called.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn open(self, client: &Client) -> Result<(Opened, SessionId, String), ApiError> {
        let session = SessionId::new();
        let stream = Some(ByteStream::open_within(client.bus(), session, PATIENCE).await?);
        Ok((Opened { content: self.content, session, stream }, session, self.label))
    }

    /// Goes on with what another process began under that session.
    pub fn resume(self, session: SessionId) -> Opened {
        Opened { content: self.content, session, stream: None }
    }
}

impl Opened {
    /// Begins to send for that operation; nothing is taken before its host begins.
    pub fn send(self, client: &Client, operation: &Operation, format: Format) -> Sending {
        let Self { content, session, stream } = self;
        let road = Road { client: client.clone(), session, operation: OperationRef { id: operation.id }, format };
        Sending(tokio::spawn(road.carry(content, stream)))
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

/// The way to the host that awaits an upload.
struct Road {
    client: Client,
    session: SessionId,
    operation: OperationRef,
    format: Format,
}

impl Road {
    /// Carries all of it, over as many streams as that needs.
    async fn carry(self, mut content: Content, stream: Option<ByteStream>) -> Result<(), Unsent> {
        let (mut from, mut tries) = (Held::default(), 0);
        let mut stream = match stream {
            Some(stream) => stream,
            None => {
                let lost = io::Error::other("its host does not await it");
                let Some(place) = self.place(lost).await? else { return Ok(()) };
                self.at(place, &mut from).await?
            }
        };
        loop {
            let (asked, used) = (from.clone(), stream);
            let sent = tokio::task::spawn_blocking(move || {
                let sent = content.send(used, &asked);
                (content, sent)
            });
            let (back, sent) = sent.await.map_err(|error| Unsent::There(io::Error::other(error)))?;
            content = back;
            let Err(Unsent::There(error)) = sent else { return sent };
            let why = output::clean(&error.to_string());
            let Some(place) = self.place(error).await? else { return Ok(()) };
            tries = if place.at > from.at { 0 } else { tries + 1 };
            if tries > TRIES {
                let message = format!("it broke off {TRIES} times without getting on, at last: {why}");
                return Err(Unsent::There(io::Error::other(message)));
            }
            self.say(&format!("the upload broke off ({why}); it goes on at {}", indicatif::BinaryBytes(place.at)));
            stream = self.at(place, &mut from).await?;
        }
    }

    fn say(&self, text: &str) {
        if self.format == Format::Table {
            output::note(text);
        }
    }

    async fn at(&self, place: Place, from: &mut Held) -> Result<ByteStream, Unsent> {
        *from = Held { at: place.at, digest: (place.at > 0).then_some(place.digest) };
        let stream = ByteStream::open(self.client.bus(), place.session).await;
        stream.map_err(|error| Unsent::There(io::Error::other(error)))
    }

    /// Asks the host where it goes on until that tells, or the operation has ended: well (none), or not.
    async fn place(&self, lost: io::Error) -> Result<Option<Place>, Unsent> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match self.client.bus().upload_place(self.session).await {
                Ok(place) => return Ok(Some(place)),
                Err(error) => tracing::debug!(%error, "no host awaits the upload"),
            }
            match self.client.ask::<operation::Get>(&self.operation).await {
                Ok(operation) if operation.state == operation::OperationState::Succeeded => return Ok(None),
                Ok(operation) if operation.state.is_final() => return Err(Unsent::There(lost)),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the operation cannot be asked for"),
            }
            if Instant::now() > give_up {
                return Err(Unsent::There(lost));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Waits for the operation that makes something of it while it is sent, and shows that. Ctrl-C calls it off: without this process nothing comes any
/// more.
///
/// # Errors
/// What went wrong here, or the operation's error.
pub async fn made<P: AsyncFnOnce(Operation) -> Result<(), Failure>>(
    client: &Client,
    operation: Operation,
    upload: Option<Opened>,
    format: Format,
    no_wait: bool,
    shown: P,
) -> Result<Outcome, Failure> {
    let Some(upload) = upload else { return wait::settle(client, operation, format, no_wait, shown).await };
    let sending = upload.send(client, &operation, format);
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
///
/// # Errors
/// It does not exist, or the services stay away.
pub async fn watched(client: &Client, operation: Operation, format: Format) -> Result<Operation, Failure> {
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

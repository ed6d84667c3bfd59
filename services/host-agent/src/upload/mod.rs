//! An **upload**: a file that a client sends, in its sparse form (`archive::sparse`), into a staging's directory. A line that breaks costs what was on
//! its way: what came stays, and its sender asks where to go on (`contract::upload`), from this agent or the next.

mod incoming;
mod kept;

use std::{
    io::{self, Read},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use archive::sparse::{self, ReceiveError};
use bus::{Bus, ByteStream, Desk, Ring};
use contract::{ApiError, SessionId, stream::was_lost, upload::Place};
use tokio::io::AsyncWriteExt;
use tokio_util::sync::CancellationToken;

use crate::files;
use kept::Kept;

pub use incoming::Incoming;
pub use kept::{GIVEN, forget, fresh};

/// How long a sender that was lost is waited for: a laptop that is carried to another room, and its user who begins again.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// How much is taken between two looks at the disk, in bytes.
const LOOK: u64 = 32 << 20;
/// How the sparse form begins: with a frame of zstd (RFC 8878).
const FRAME: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Why a file did not come.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// It is larger than it may be.
    #[error("it has more than the {0} bytes this host takes")]
    TooLarge(u64),
    /// What came is in no form that is known.
    #[error("the upload cannot be used: {0}")]
    Malformed(#[source] ReceiveError),
    /// What came is not what was sent.
    #[error("the upload is damaged: {0}")]
    Damaged(#[source] io::Error),
    /// Its sender gave it up, or did not come back.
    #[error("the upload broke off: {0}")]
    BrokeOff(String),
    /// The bus does not carry it.
    #[error("the upload cannot be awaited: {0}")]
    Bus(#[from] bus::BusError),
    /// It cannot be written here.
    #[error("the upload cannot be written: {0}")]
    Disk(#[source] io::Error),
    /// It was called off.
    #[error("the staging was discarded")]
    Discarded,
}

impl From<UploadError> for ApiError {
    fn from(error: UploadError) -> Self {
        let message = error.to_string();
        match error {
            UploadError::TooLarge(_) => Self::invalid_argument(message),
            UploadError::Malformed(_) => {
                Self::invalid_argument(message).hint("it may come from a client of another version")
            }
            UploadError::Damaged(_) => Self::invalid_argument(message).hint("begin it again"),
            UploadError::BrokeOff(_) => Self::unavailable(message).hint("begin it again"),
            UploadError::Bus(_) => Self::unavailable(message),
            UploadError::Disk(_) => Self::internal(message),
            UploadError::Discarded => Self::cancelled(message),
        }
    }
}

/// A file that is to come.
pub struct Upload {
    /// What carries it.
    pub bus: Bus,
    /// How it was announced: its sender listens as the opener of that stream.
    pub session: SessionId,
    /// Where it becomes [`GIVEN`].
    pub dir: PathBuf,
    /// Within what it may come.
    pub bounds: Bounds,
    /// Hears of each piece's length.
    pub count: Arc<dyn Fn(u64) + Send + Sync>,
    /// Has it end.
    pub cancel: CancellationToken,
}

/// Within what it may come.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The file's length, in bytes.
    pub most: u64,
    /// What has to stay free on the disk, in bytes.
    pub reserve: u64,
    /// How long a sender that was lost is waited for.
    pub patience: Duration,
    /// Whether bytes as they are, not in the sparse form, are a file too. They cannot go on.
    pub plain: bool,
}

/// How one stream ended.
enum Ended {
    Whole,
    /// It may go on with another.
    Lost(String),
    Failed(UploadError),
}

/// One stream of an upload, as a thread takes it.
struct Attempt {
    kept: Kept,
    incoming: Incoming<ByteStream>,
    bounds: Bounds,
    count: Arc<dyn Fn(u64) + Send + Sync>,
    cancel: CancellationToken,
}

impl Upload {
    /// Takes it to its end.
    ///
    /// # Errors
    /// As [`UploadError`] says.
    pub async fn take(&self) -> Result<(), UploadError> {
        let (dir, session, cancel) = (self.dir.clone(), self.session, self.cancel.clone());
        let (mut kept, begun) = off(move || Kept::open(&dir, session, &cancel)).await?;
        if kept.whole() {
            return Ok(());
        }
        (self.count)(kept.place().0);
        let mut desk = self.bus.upload_desk(session).await?;
        let mut ring = if begun {
            // It speaks to an agent that is no more.
            let before = ByteStream::accept(&self.bus, kept.stream()).await?;
            before.reset("the host-agent was started anew").await;
            self.awaited(&mut desk, "the host-agent was started anew").await.map(Some)?
        } else {
            None
        };
        loop {
            let stream;
            (kept, stream) = self.stream(kept, ring.take()).await?;
            let attempt = self.cancel.child_token();
            let mut receiving = tokio::task::spawn_blocking({
                let incoming = Incoming::new(stream, attempt.clone());
                let (bounds, count, cancel) = (self.bounds, self.count.clone(), attempt.clone());
                move || Attempt { kept, incoming, bounds, count, cancel }.run()
            });
            let (taken, came) = tokio::select! {
                taken = &mut receiving => (taken, None),
                Some(ring) = desk.next() => {
                    attempt.cancel();
                    (receiving.await, Some(ring))
                }
            };
            let (back, mut stream, ended) = taken.map_err(|error| UploadError::Disk(io::Error::other(error)))?;
            kept = back;
            match ended {
                Ended::Whole => {
                    let shut = stream.shutdown().await;
                    tracing::debug!(?shut, "an upload was taken");
                    return Ok(());
                }
                Ended::Failed(error) => {
                    stream.reset(error.to_string()).await;
                    return Err(error);
                }
                Ended::Lost(_) if self.cancel.is_cancelled() => {
                    stream.reset(UploadError::Discarded.to_string()).await;
                    return Err(UploadError::Discarded);
                }
                Ended::Lost(why) => {
                    tracing::info!(at = kept.place().0, %why, "an upload broke off");
                    tokio::spawn(stream.reset("it goes on with another stream"));
                    ring = Some(match came {
                        Some(ring) => ring,
                        None => self.awaited(&mut desk, &why).await?,
                    });
                }
            }
        }
    }

    /// The stream to go on with, of which the sender that rang is told; the announced one where none rang.
    async fn stream(&self, mut kept: Kept, ring: Option<Ring>) -> Result<(Kept, ByteStream), UploadError> {
        let Some(ring) = ring else {
            let stream = ByteStream::accept(&self.bus, self.session).await?;
            return Ok((kept, stream));
        };
        let session = SessionId::new();
        let kept = off(move || kept.go_on(session).map(|()| kept)).await?;
        let stream = ByteStream::accept(&self.bus, session).await?;
        let (at, digest) = kept.place();
        ring.answer(&Place { session, at, digest }).await;
        Ok((kept, stream))
    }

    /// Waits for a sender that was lost.
    async fn awaited(&self, desk: &mut Desk, why: &str) -> Result<Ring, UploadError> {
        tokio::select! {
            Some(ring) = desk.next() => Ok(ring),
            () = self.cancel.cancelled() => Err(UploadError::Discarded),
            () = tokio::time::sleep(self.bounds.patience) => {
                let seconds = self.bounds.patience.as_secs();
                Err(UploadError::BrokeOff(format!("{why}; and nobody went on with it for {seconds} s")))
            }
        }
    }
}

async fn off<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, UploadError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other).and_then(|done| done);
    done.map_err(|error| match error.kind() {
        io::ErrorKind::Interrupted => UploadError::Discarded,
        _ => UploadError::Disk(error),
    })
}

impl Attempt {
    fn run(mut self) -> (Kept, ByteStream, Ended) {
        let ended = match self.received() {
            Ok(()) => match self.kept.complete() {
                Ok(()) => Ended::Whole,
                Err(error) => Ended::Failed(UploadError::Disk(error)),
            },
            // Another stream takes its place, or it was called off.
            Err(_) if self.cancel.is_cancelled() => Ended::Lost("its sender came again".to_owned()),
            Err(error) => self.ended(error),
        };
        (self.kept, self.incoming.into_inner(), ended)
    }

    fn received(&mut self) -> Result<(), ReceiveError> {
        let mut begins = Vec::new();
        let head = (&mut self.incoming).take(FRAME.len() as u64).read_to_end(&mut begins);
        head.map_err(ReceiveError::Stream)?;
        let file = self.kept.file().map_err(ReceiveError::Disk)?;
        let (begin, bounds, mut since) = (self.kept.place().0, self.bounds, LOOK);
        let (kept, count, cancel) = (&mut self.kept, &self.count, &self.cancel);
        let dir = kept.dir().to_owned();
        let mut watch = |bytes: u64| -> io::Result<()> {
            count(bytes);
            since += bytes;
            if cancel.is_cancelled() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if since >= LOOK {
                since = 0;
                if files::free_bytes(&dir)? < bounds.reserve {
                    return Err(io::ErrorKind::StorageFull.into());
                }
            }
            Ok(())
        };
        let plain = bounds.plain && begin == 0 && begins != FRAME;
        let all = io::Cursor::new(begins).chain(&mut self.incoming);
        if plain {
            return copied(all, &file, bounds.most, watch);
        }
        let taken = sparse::receive(all, &file, begin, bounds.most, |at, bytes| {
            kept.take(at, bytes)?;
            watch(bytes.len() as u64)
        });
        taken.map(drop)
    }

    fn ended(&self, error: ReceiveError) -> Ended {
        Ended::Failed(match error {
            ReceiveError::TooLarge(most) => UploadError::TooLarge(most),
            ReceiveError::Malformed(_) => UploadError::Malformed(error),
            ReceiveError::Disk(error) => UploadError::Disk(error),
            ReceiveError::Stream(error) => match error.kind() {
                io::ErrorKind::ConnectionReset if was_lost(&error.to_string()) => {
                    return Ended::Lost(error.to_string());
                }
                io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
                    UploadError::BrokeOff(error.to_string())
                }
                _ => UploadError::Damaged(error),
            },
        })
    }
}

/// Takes bytes as they are.
fn copied(
    mut from: impl Read,
    mut into: &std::fs::File,
    most: u64,
    mut watch: impl FnMut(u64) -> io::Result<()>,
) -> Result<(), ReceiveError> {
    let (mut length, mut piece) = (0, vec![0; sparse::PIECE_MAX]);
    loop {
        let count = from.read(&mut piece).map_err(ReceiveError::Stream)?;
        if count == 0 {
            return Ok(());
        }
        length += count as u64;
        if length > most {
            return Err(ReceiveError::TooLarge(most));
        }
        io::Write::write_all(&mut into, &piece[..count]).map_err(ReceiveError::Disk)?;
        watch(count as u64).map_err(ReceiveError::Disk)?;
    }
}

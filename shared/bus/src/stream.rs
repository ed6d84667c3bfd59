//! Byte streams over the bus: an ordered, flow-controlled, digest-checked pipe between two processes that
//! see each other only through NATS. The packets are [`contract::stream`]'s.
//!
//! A lost message (a reconnect, a slow consumer) is sent again; a peer silent for [`contract::stream::RECONNECT_MAX`] is taken for gone. A reader that
//! stalls stops its own stream's sender after [`WINDOW`] bytes and no other's.

mod parting;
mod pump;
mod receiver;
mod sender;

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use async_nats::Subscriber;
use contract::{
    SessionId,
    direct::WINDOW as DIRECT_WINDOW,
    stream::DATA_MAX,
    subject::{stream_to_acceptor, stream_to_opener},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::oneshot,
};
use tokio_util::sync::CancellationToken;

use crate::{Bus, BusError, direct::Credit};

/// What both the stream and its pump know of its end.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    /// Its user has shut the writing side down: what is buffered must still go out.
    pub(crate) shut: bool,
    /// Why it broke, if it did.
    pub(crate) broken: Option<String>,
    /// Why the peer takes no more, although all it had to say has come.
    pub(crate) unwanted: Option<String>,
}

pub(crate) type SharedEnding = Arc<Mutex<Ending>>;

pub(crate) fn with_ending<T>(ending: &SharedEnding, f: impl FnOnce(&mut Ending) -> T) -> T {
    f(&mut ending.lock().unwrap_or_else(PoisonError::into_inner))
}

/// One end of a byte stream. Reading ends with an error that holds the peer's reason when the stream was
/// reset; dropping it before both directions have ended resets it. A peer that ended its direction first and was dropped then
/// has said all it had to say: reading ends well, and only writing fails.
#[derive(Debug)]
pub struct ByteStream {
    pipe: DuplexStream,
    ending: SharedEnding,
    dropped: CancellationToken,
    done: CancellationToken,
    heard: CancellationToken,
    reset: Option<oneshot::Sender<String>>,
    /// Where it is told what was read, on a direct connection.
    credit: Option<Arc<Credit>>,
}

/// An opener's end that listens and has not said anything yet: the stream may still be taken by another road.
#[derive(Debug)]
pub struct Listening {
    bus: Bus,
    inbound: Subscriber,
    send: String,
}

impl Listening {
    /// The opener's end, from now on.
    pub fn begin(self) -> ByteStream {
        ByteStream::begin(self.bus, self.inbound, self.send, None)
    }
}

impl ByteStream {
    /// The opener's end. It listens when this returns: only then may the acceptor be asked to begin.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn open(bus: &Bus, session: SessionId) -> Result<Self, BusError> {
        Self::start(bus, stream_to_opener(session), stream_to_acceptor(session), None).await
    }

    /// The opener's end of a stream whose acceptor begins later, because its work waits in a queue: until its first packet comes, silence
    /// is borne for `patience`, and what is written meanwhile (a window at the most) is sent again only then.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn open_within(bus: &Bus, session: SessionId, patience: Duration) -> Result<Self, BusError> {
        Self::start(bus, stream_to_opener(session), stream_to_acceptor(session), Some(patience)).await
    }

    /// The acceptor's end. It listens when this returns: only then may the opener's request be answered.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn accept(bus: &Bus, session: SessionId) -> Result<Self, BusError> {
        Self::start(bus, stream_to_acceptor(session), stream_to_opener(session), None).await
    }

    /// The opener's end, as yet silent. It listens when this returns.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn listen(bus: &Bus, session: SessionId) -> Result<Listening, BusError> {
        let inbound = bus.subscribe(stream_to_opener(session)).await?;
        Ok(Listening { bus: bus.clone(), inbound, send: stream_to_acceptor(session) })
    }

    /// Either end, over a connection of its own whose peer does the same ([`crate::direct`]).
    pub(crate) fn direct(connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        let (mut stream, inner, reset_asked) = Self::parts(DIRECT_WINDOW);
        let credit = Arc::<Credit>::default();
        stream.credit = Some(credit.clone());
        stream.heard.cancel();
        let finished = stream.done.clone().drop_guard();
        let (ending, dropped) = (stream.ending.clone(), stream.dropped.clone());
        tokio::spawn(crate::direct::carry(connection, inner, credit, ending, dropped, reset_asked, finished));
        stream
    }

    async fn start(bus: &Bus, listen: String, send: String, patience: Option<Duration>) -> Result<Self, BusError> {
        let inbound = bus.subscribe(listen).await?;
        Ok(Self::begin(bus.clone(), inbound, send, patience))
    }

    fn begin(bus: Bus, inbound: Subscriber, send: String, patience: Option<Duration>) -> Self {
        let (stream, inner, reset_asked) = Self::parts(2 * DATA_MAX);
        let (ending, dropped) = (stream.ending.clone(), stream.dropped.clone());
        let pump = pump::Pump::new(bus, send, inner, ending, dropped, stream.heard.clone()).patient(patience);
        let finished = stream.done.clone().drop_guard();
        tokio::spawn(async move {
            pump.run(inbound, reset_asked, finished).await;
        });
        stream
    }

    /// A stream, what carries it, and how that hears of a reset.
    fn parts(buffer: usize) -> (Self, DuplexStream, oneshot::Receiver<String>) {
        let (pipe, inner) = tokio::io::duplex(buffer);
        let (reset, reset_asked) = oneshot::channel();
        let (dropped, done, heard) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let (ending, reset) = (SharedEnding::default(), Some(reset));
        let stream = Self { pipe, ending, dropped, done, heard, reset, credit: None };
        (stream, inner, reset_asked)
    }

    /// Waits for the peer's first word.
    pub async fn heard(&self) {
        self.heard.cancelled().await;
    }

    /// Ends both directions at once; the peer's reads fail with `reason`.
    pub async fn reset(mut self, reason: impl Into<String>) {
        if let Some(reset) = self.reset.take()
            && reset.send(reason.into()).is_ok()
        {
            self.done.cancelled().await;
        }
    }

    /// Waits until both directions have ended and the peer knows (at most some seconds), for processes that exit afterwards.
    pub async fn closed(&self) {
        self.done.cancelled().await;
    }
}

impl Drop for ByteStream {
    fn drop(&mut self) {
        self.dropped.cancel();
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.pipe).poll_read(cx, buffer))?;
        let read = buffer.filled().len() - before;
        if let Some(credit) = &self.credit {
            credit.read(read);
        }
        let ended = read == 0 && buffer.remaining() > 0;
        if ended && let Some(reason) = with_ending(&self.ending, |ending| ending.broken.clone()) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, reason)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(reason) = with_ending(&self.ending, |ending| ending.unwanted.clone()) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, reason)));
        }
        let result = ready!(Pin::new(&mut self.pipe).poll_write(cx, buffer));
        Poll::Ready(result.map_err(|error| match with_ending(&self.ending, |ending| ending.broken.clone()) {
            Some(reason) => io::Error::new(io::ErrorKind::ConnectionReset, reason),
            None => error,
        }))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_ending(&self.ending, |ending| ending.shut = true);
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

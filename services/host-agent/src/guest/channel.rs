//! The channel itself: one unix socket of the VMM, the handshake, and yamux with the host as client.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::UnixStream,
    sync::{mpsc, oneshot},
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

use super::handshake;

/// First pause before the socket is tried again: it appears some milliseconds after the VMM's start.
const RETRY_MIN: Duration = Duration::from_millis(10);
/// How long a connection that nobody wants any more may take to send what was written last.
const CLOSE: Duration = Duration::from_secs(10);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// How many may wait for a stream to be opened.
const OPENINGS: usize = 32;

/// What carries a connection.
pub(super) trait Pipe: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Pipe for S {}

type Opening = oneshot::Sender<Result<yamux::Stream, yamux::ConnectionError>>;
type Connection<S> = yamux::Connection<Compat<S>>;

/// A channel that reconnects until every clone is dropped.
#[derive(Clone, Debug)]
pub struct Channel {
    openings: mpsc::Sender<Opening>,
}

impl Channel {
    /// Connects to a socket in that directory, again and again.
    pub(super) fn keep(dir: PathBuf, socket: &'static str) -> Self {
        let (openings, asked) = mpsc::channel(OPENINGS);
        tokio::spawn(keep(dir, socket, asked));
        Self { openings }
    }

    /// One connection, which is not made anew. It ends with its last clone, or when `dead`, which is given a weak one, returns.
    pub(super) fn once<S: Pipe, D: Future<Output = ()> + Send + 'static>(
        pipe: S,
        config: yamux::Config,
        dead: impl FnOnce(WeakChannel) -> D,
    ) -> Self {
        let (openings, mut asked) = mpsc::channel(OPENINGS);
        let dead = dead(WeakChannel(openings.downgrade()));
        let mut connection = yamux::Connection::new(pipe.compat(), config, yamux::Mode::Client);
        tokio::spawn(async move {
            tokio::select! {
                unwanted = drive(&mut connection, &mut asked) => if unwanted {
                    // What its streams wrote last is still on its way out.
                    let closing = std::future::poll_fn(|cx| connection.poll_close(cx));
                    let closed = tokio::time::timeout(CLOSE, closing).await;
                    tracing::trace!(?closed, "a lane has ended");
                },
                () = dead => {}
            }
        });
        Self { openings }
    }

    /// Opens a stream; waits while the channel is down.
    pub(super) async fn open(&self) -> io::Result<GuestStream> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the guest's channel is closed");
        let (answer, opened) = oneshot::channel();
        self.openings.send(answer).await.map_err(|_| gone())?;
        let stream = opened.await.map_err(|_| gone())?.map_err(io::Error::other)?;
        Ok(GuestStream { stream: stream.compat(), lane: None })
    }
}

/// A channel that does not keep its connection.
pub(super) struct WeakChannel(mpsc::WeakSender<Opening>);

impl WeakChannel {
    /// The channel, while somebody else keeps it.
    pub(super) fn upgrade(&self) -> Option<Channel> {
        Some(Channel { openings: self.0.upgrade()? })
    }
}

/// A stream into the guest.
#[derive(Debug)]
pub struct GuestStream {
    stream: Compat<yamux::Stream>,
    /// The lane it is on, which ends with it.
    lane: Option<Channel>,
}

impl GuestStream {
    /// Keeps the lane it is on.
    pub(super) fn keeping(self, lane: Channel) -> Self {
        Self { lane: Some(lane), ..self }
    }

    /// Whether it is on a lane.
    pub fn is_on_lane(&self) -> bool {
        self.lane.is_some()
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

async fn keep(dir: PathBuf, socket: &'static str, mut asked: mpsc::Receiver<Opening>) {
    let mut pause = RETRY_MIN;
    while !asked.is_closed() {
        match connect(&dir, socket).await {
            Ok(mut connection) => {
                pause = RETRY_MIN;
                if drive(&mut connection, &mut asked).await {
                    return;
                }
            }
            Err(error) => tracing::trace!(%error, "the guest's channel is not there yet"),
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = asked_closed(&asked) => return,
        }
        pause = (pause * 2).min(RETRY_MAX);
    }
}

async fn asked_closed(asked: &mpsc::Receiver<Opening>) {
    while !asked.is_closed() {
        tokio::time::sleep(RETRY_MAX).await;
    }
}

async fn connect(dir: &PathBuf, socket: &str) -> io::Result<Connection<BufReader<UnixStream>>> {
    // A unix socket's path has at most 107 bytes; through a descriptor of the directory it is always short.
    let dir = File::open(dir)?;
    let mut pipe = BufReader::new(UnixStream::connect(format!("/proc/self/fd/{}/{socket}", dir.as_raw_fd())).await?);
    handshake::perform(&mut pipe).await?;
    Ok(yamux::Connection::new(pipe.compat(), yamux::Config::default(), yamux::Mode::Client))
}

/// Runs one connection; true when nobody wants the channel any more.
async fn drive<S: Pipe>(connection: &mut Connection<S>, asked: &mut mpsc::Receiver<Opening>) -> bool {
    let mut opening: Option<Opening> = None;
    std::future::poll_fn(|cx| step(connection, asked, &mut opening, cx)).await
}

fn step<S: Pipe>(
    connection: &mut Connection<S>,
    asked: &mut mpsc::Receiver<Opening>,
    opening: &mut Option<Opening>,
    cx: &mut Context<'_>,
) -> Poll<bool> {
    loop {
        if opening.is_none() {
            match asked.poll_recv(cx) {
                Poll::Ready(Some(next)) => *opening = Some(next),
                Poll::Ready(None) => return Poll::Ready(true),
                Poll::Pending => {}
            }
        }
        if opening.is_some()
            && let Poll::Ready(outcome) = connection.poll_new_outbound(cx)
        {
            let failed = outcome.is_err();
            // Whoever asked may have given up; then the stream is dropped, which resets it.
            if let Some(opening) = opening.take() {
                drop(opening.send(outcome));
            }
            if failed {
                return Poll::Ready(false);
            }
            continue;
        }
        match connection.poll_next_inbound(cx) {
            // The guest opens no streams by itself; one that does is reset.
            Poll::Ready(Some(Ok(stream))) => drop(stream),
            Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(false),
            Poll::Pending => return Poll::Pending,
        }
    }
}

//! The channel itself: one unix socket of the VMM, the handshake, and yamux with the host as client.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::PathBuf,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::BufReader,
    net::UnixStream,
    sync::{mpsc, oneshot},
};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use super::{GuestStream, handshake, tokio_stream};

/// First pause before the socket is tried again: it appears some milliseconds after the VMM's start.
const RETRY_MIN: Duration = Duration::from_millis(10);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(1);

type Opening = oneshot::Sender<Result<yamux::Stream, yamux::ConnectionError>>;
type Connection = yamux::Connection<Compat<BufReader<UnixStream>>>;

/// A channel that reconnects until every clone is dropped.
#[derive(Clone, Debug)]
pub struct Channel {
    openings: mpsc::Sender<Opening>,
}

impl Channel {
    /// Connects to a socket in that directory, again and again.
    pub(super) fn keep(dir: PathBuf, socket: &'static str) -> Self {
        let (openings, asked) = mpsc::channel(32);
        tokio::spawn(keep(dir, socket, asked));
        Self { openings }
    }

    /// Opens a stream; waits while the channel is down.
    pub(super) async fn open(&self) -> io::Result<GuestStream> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the guest's channel is closed");
        let (answer, opened) = oneshot::channel();
        self.openings.send(answer).await.map_err(|_| gone())?;
        let stream = opened.await.map_err(|_| gone())?.map_err(io::Error::other)?;
        Ok(tokio_stream(stream))
    }
}

async fn keep(dir: PathBuf, socket: &'static str, mut asked: mpsc::Receiver<Opening>) {
    let mut pause = RETRY_MIN;
    while !asked.is_closed() {
        match connect(&dir, socket).await {
            Ok(connection) => {
                pause = RETRY_MIN;
                if drive(connection, &mut asked).await {
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

async fn connect(dir: &PathBuf, socket: &str) -> io::Result<Connection> {
    // A unix socket's path has at most 107 bytes; through a descriptor of the directory it is always short.
    let dir = File::open(dir)?;
    let mut pipe = BufReader::new(UnixStream::connect(format!("/proc/self/fd/{}/{socket}", dir.as_raw_fd())).await?);
    handshake::perform(&mut pipe).await?;
    Ok(yamux::Connection::new(pipe.compat(), yamux::Config::default(), yamux::Mode::Client))
}

/// Runs one connection; true when nobody wants the channel any more.
async fn drive(mut connection: Connection, asked: &mut mpsc::Receiver<Opening>) -> bool {
    let mut opening: Option<Opening> = None;
    std::future::poll_fn(|cx| step(&mut connection, asked, &mut opening, cx)).await
}

fn step(
    connection: &mut Connection,
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

//! The channel's byte pipe as yamux sees it, watched for the preamble of a new connection.
//!
//! A virtio-serial port does not always tell the guest that the host's side was closed and opened again. So the
//! channel remembers the last bytes it gave out: when they are a whole preamble and nothing follows, a new host is
//! waiting for its echo, and reading fails. A preamble inside the data of a stream has something behind it at once
//! (the host never waits in the middle of yamux), so nothing a user sends is taken for one.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::handshake::{self, LENGTH, Preamble};

/// How long nothing may follow a preamble until it is taken as one.
const QUIET: Duration = Duration::from_millis(200);
/// How much is read at once, in bytes.
const READ_MAX: usize = 64 * 1024;

/// A byte pipe with a memory for preambles.
pub struct Channel<S> {
    pipe: S,
    /// Read, not yet given out.
    buffer: BytesMut,
    /// The last bytes given out, at most a preamble's length.
    recent: BytesMut,
    quiet: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Channel<S> {
    /// Wraps a byte pipe.
    pub fn new(pipe: S) -> Self {
        Self { pipe, buffer: BytesMut::new(), recent: BytesMut::new(), quiet: None }
    }

    /// Waits for a preamble and echoes it: a connection begins.
    ///
    /// # Errors
    /// The pipe has ended or failed.
    pub async fn accept(&mut self) -> io::Result<()> {
        // What yamux swallowed before it failed may have been the beginning of a preamble.
        let mut scanned = std::mem::take(&mut self.recent);
        scanned.unsplit(std::mem::take(&mut self.buffer));
        self.quiet = None;
        let preamble: Preamble = loop {
            if let Some(preamble) = handshake::take(&mut scanned) {
                break preamble;
            }
            scanned.reserve(READ_MAX);
            if self.pipe.read_buf(&mut scanned).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        self.buffer = scanned;
        self.pipe.write_all(&preamble).await?;
        self.pipe.flush().await
    }

    /// Forgets everything that was read: the pipe begins anew.
    pub fn reset(&mut self) {
        self.buffer.clear();
        self.recent.clear();
        self.quiet = None;
    }

    /// The pipe itself.
    pub fn pipe(&mut self) -> &mut S {
        &mut self.pipe
    }

    fn remember(&mut self, given: &[u8]) {
        self.recent.extend_from_slice(&given[given.len().saturating_sub(LENGTH)..]);
        self.recent.advance(self.recent.len().saturating_sub(LENGTH));
        self.quiet = handshake::is_preamble(&self.recent).then(|| Box::pin(sleep(QUIET)));
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Channel<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.buffer.is_empty() {
            this.buffer.resize(READ_MAX, 0);
            let mut read = ReadBuf::new(&mut this.buffer);
            let outcome = Pin::new(&mut this.pipe).poll_read(context, &mut read);
            let length = read.filled().len();
            this.buffer.truncate(length);
            match outcome {
                Poll::Ready(outcome) => outcome?,
                Poll::Pending => {
                    if let Some(quiet) = &mut this.quiet {
                        ready!(quiet.as_mut().poll(context));
                        return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                    }
                    return Poll::Pending;
                }
            }
            if length == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        let given = this.buffer.split_to(this.buffer.len().min(out.remaining()));
        out.put_slice(&given);
        this.remember(&given);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Channel<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().pipe).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().pipe).poll_flush(context)
    }

    // yamux closes its socket when it fails; the pipe outlives it.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}

//! One yamux stream, shared between the half that reads and the half that writes, with its messages.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use contract::{
    ApiError,
    guest::{MESSAGE_MAX, Reply, Request},
};
use futures::{AsyncRead as _, AsyncWrite as _};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// How often a stream is looked at for whether the host has dropped it; yamux wakes only readers and writers.
const CLOSED_POLL: Duration = Duration::from_millis(250);

/// One yamux stream. Clones are the same stream; one may read while another writes.
#[derive(Clone, Debug)]
pub struct MuxStream(Arc<Mutex<yamux::Stream>>);

impl MuxStream {
    /// Wraps a stream.
    pub fn new(stream: yamux::Stream) -> Self {
        Self(Arc::new(Mutex::new(stream)))
    }

    fn lock(&self) -> MutexGuard<'_, yamux::Stream> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Returns once the stream is of no use in either direction: dropped by the host, or its connection ended.
    pub async fn closed(&self) {
        loop {
            if self.lock().is_closed() {
                return;
            }
            tokio::time::sleep(CLOSED_POLL).await;
        }
    }

    /// Reads the host's request.
    ///
    /// # Errors
    /// The stream ended, or what came is no request.
    pub async fn read_request(&mut self) -> Result<Request, ApiError> {
        let gone = |error: io::Error| ApiError::unavailable(format!("the stream ended within its request: {error}"));
        let length = self.read_u32().await.map_err(gone)? as usize;
        if length > MESSAGE_MAX {
            return Err(ApiError::invalid_argument(format!(
                "the request has {length} bytes, over the limit of {MESSAGE_MAX}"
            )));
        }
        let mut message = vec![0; length];
        self.read_exact(&mut message).await.map_err(gone)?;
        serde_json::from_slice(&message)
            .map_err(|error| ApiError::invalid_argument(format!("the guest does not understand the request: {error}")))
    }

    /// Answers it.
    ///
    /// # Errors
    /// The host has gone.
    pub async fn write_reply(&mut self, reply: &Reply) -> io::Result<()> {
        let mut message = serde_json::to_vec(reply)?;
        if message.len() > MESSAGE_MAX {
            message = serde_json::to_vec(&Reply::Error(ApiError::internal("the guest's reply is over 256 KiB")))?;
        }
        let mut bytes = (message.len() as u32).to_be_bytes().to_vec();
        bytes.append(&mut message);
        self.write_all(&bytes).await?;
        self.flush().await
    }
}

/// Answers a stream that is one too many.
pub async fn refuse(mut stream: MuxStream, limit: usize) {
    let error = ApiError::resource_exhausted(format!("the guest already serves {limit} streams"))
        .hint("wait until some of them have ended");
    if stream.write_reply(&Reply::Error(error)).await.is_ok() {
        stream.shutdown().await.unwrap_or_default();
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut stream = self.lock();
        Pin::new(&mut *stream).poll_read(context, buffer.initialize_unfilled()).map_ok(|length| buffer.advance(length))
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_close(context)
    }
}

//! A stream of bytes as a thread reads it.

use std::io::{self, Read};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    runtime::Handle,
};
use tokio_util::sync::CancellationToken;

/// Ends with an error when whoever reads is to end.
pub struct Incoming<S> {
    stream: S,
    cancel: CancellationToken,
    runtime: Handle,
}

impl<S: AsyncRead + Unpin> Incoming<S> {
    /// To be made on the runtime, and read off it.
    pub fn new(stream: S, cancel: CancellationToken) -> Self {
        Self { stream, cancel, runtime: Handle::current() }
    }

    /// The stream, for who has more to say on it.
    pub fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> Read for Incoming<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (stream, cancel) = (&mut self.stream, &self.cancel);
        self.runtime.block_on(async {
            tokio::select! {
                read = stream.read(buffer) => read,
                () = cancel.cancelled() => Err(io::Error::other("told to end")),
            }
        })
    }
}

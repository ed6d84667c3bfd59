//! Files in and out of the guest as tar archives (POSIX.1-2001 pax), which need no program of the image.
//!
//! The archive travels in frames ([`contract::frame`]): into the guest as `stdin`, out of it as `stdout`, with warnings as
//! `stderr`, and `exit` at the end says whether all of it was done. Reading and writing files is done in threads, a bounded
//! queue apart from the stream, so that neither side runs ahead of the other.

mod pack;
mod unpack;

pub use pack::serve as pack;
pub use unpack::serve as unpack;

use bytes::BytesMut;
use contract::frame::{Exit, Frame};
use tokio::io::AsyncWriteExt;

use crate::agent::MuxStream;

async fn send(stream: &mut MuxStream, frame: &Frame) -> std::io::Result<()> {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Says how it ended; a host that has gone need not know.
async fn finish(stream: &mut MuxStream, outcome: Result<(), String>) {
    let exit = match outcome {
        Ok(()) => Exit { code: 0, message: None },
        Err(message) => Exit { code: 1, message: Some(message) },
    };
    if send(stream, &Frame::Exit(exit)).await.is_ok() {
        stream.shutdown().await.unwrap_or_default();
    }
}

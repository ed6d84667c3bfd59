//! Both ends of a client over a byte stream, in [`contract::frame`]s: the blocking end works in a thread, a bounded pipe apart.

use std::{io, path::PathBuf, sync::Arc};

use archive::pipe;
use bytes::{Bytes, BytesMut};
use contract::{
    frame::{Exit, Frame},
    worktree::ChangeList,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
};

use crate::{Limits, Progress, ReadError, SendError, Sent, Tree, read_export, send, wire::text};

/// The bytes of a stream that are read at once.
const BUFFER: usize = 64 * 1024;

/// [`send`] over a byte stream in frames, in a thread of its own.
///
/// # Errors
/// See the variants.
pub async fn upload(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    tree: Arc<Tree>,
    progress: impl Fn(Progress) + Send + 'static,
) -> Result<Sent, SendError> {
    let (source, mut sink) = tokio::io::split(stream);
    let (answers, from_guest) = pipe::inward();
    let (to_guest, mut pieces) = pipe::outward();
    let sending = tokio::task::spawn_blocking(move || send(&tree, from_guest, to_guest, &progress));
    let forward = async {
        while let Some(piece) = pieces.recv().await {
            say(&mut sink, Frame::Stdin(piece)).await?;
        }
        say(&mut sink, Frame::Stdin(Bytes::new())).await
    };
    let mut source = Source { reader: source, buffer: BytesMut::with_capacity(BUFFER) };
    let listen = source.listen(Some(answers));
    let (forwarded, heard, sent) = {
        tokio::pin!(forward, listen);
        // A guest that has said its last word reads no more.
        let (forwarded, heard) = tokio::select! {
            heard = &mut listen => (Ok(()), heard),
            forwarded = &mut forward => (forwarded, listen.await),
        };
        (forwarded, heard, sending)
    };
    // Its pipes are cut by now, so the thread ends.
    pieces.close();
    let sent = sent.await.unwrap_or_else(|error| Err(SendError::Stream(io::Error::other(error))));
    match (sent, heard, forwarded) {
        (Ok(sent), Ok(Exit { code: 0, .. }), _) => Ok(sent),
        // What is wrong with the tree comes before what the guest makes of it.
        (Err(error @ (SendError::Read { .. } | SendError::Changed { .. })), ..) => Err(error),
        (_, Ok(Exit { code, message }), _) if code != 0 => Err(SendError::Refused(reason(message))),
        (Err(error), ..) => Err(error),
        (Ok(_), Err(error), _) | (Ok(_), _, Err(error)) => Err(SendError::Stream(error)),
        (Ok(_), Ok(_), Ok(())) => Err(SendError::Protocol("it ended without a reason")),
    }
}

/// Tells a guest that waits for a tree that there is none, and why.
///
/// # Errors
/// It has gone.
pub async fn decline(stream: impl AsyncRead + AsyncWrite, why: &str) -> io::Result<()> {
    let (reader, mut sink) = tokio::io::split(stream);
    let mut message = Vec::new();
    crate::wire::write(&mut message, crate::wire::Tag::Fail, text(why.as_bytes()).as_bytes())?;
    say(&mut sink, Frame::Stdin(message.into())).await?;
    let mut source = Source { reader, buffer: BytesMut::new() };
    source.listen(None).await.map(drop)
}

fn reason(message: Option<String>) -> String {
    message.map_or_else(|| "it did not say why".to_owned(), |message| text(message.as_bytes()))
}

async fn say<S: AsyncWrite>(sink: &mut WriteHalf<S>, frame: Frame) -> io::Result<()> {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    sink.write_all(&bytes).await?;
    sink.flush().await
}

/// What comes from a guest.
#[derive(Debug)]
struct Source<S> {
    reader: ReadHalf<S>,
    buffer: BytesMut,
}

impl<S: AsyncRead> Source<S> {
    /// Passes output on until the exit. Whoever takes it may have enough before.
    async fn listen(&mut self, mut pieces: Option<mpsc::Sender<Bytes>>) -> io::Result<Exit> {
        loop {
            match self.frame().await? {
                Frame::Stdout(bytes) if !bytes.is_empty() => {
                    let gone = match &pieces {
                        Some(pieces) => pieces.send(bytes).await.is_err(),
                        None => false,
                    };
                    if gone {
                        pieces = None;
                    }
                }
                Frame::Exit(exit) => {
                    if let Some(pieces) = pieces.filter(|_| exit.code == 0) {
                        drop(pieces.send(Bytes::new()).await);
                    }
                    return Ok(exit);
                }
                _ => {}
            }
        }
    }

    async fn frame(&mut self) -> io::Result<Frame> {
        loop {
            let decoded = Frame::decode(&mut self.buffer);
            if let Some(frame) = decoded.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))? {
                return Ok(frame);
            }
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// An export that has been read, and waits to be accepted. Dropped instead, it does not count.
#[derive(Debug)]
pub struct Download<S> {
    /// The changes.
    pub changes: ChangeList,
    source: Source<S>,
    sink: WriteHalf<S>,
}

impl<S: AsyncRead + AsyncWrite> Download<S> {
    /// Tells the guest that everything was taken, so that the export counts.
    ///
    /// # Errors
    /// The guest could not note it, or has gone.
    pub async fn accept(mut self) -> Result<(), ReadError> {
        say(&mut self.sink, Frame::Stdin(Bytes::new())).await.map_err(ReadError::Stream)?;
        let exit = self.source.listen(None).await.map_err(ReadError::Stream)?;
        match exit.code {
            0 => Ok(()),
            _ => Err(ReadError::Refused(reason(exit.message))),
        }
    }
}

/// [`read_export`] over a byte stream in frames, in a thread of its own.
///
/// # Errors
/// See the variants.
pub async fn download<S: AsyncRead + AsyncWrite + Send + 'static>(
    stream: S,
    quarantine: PathBuf,
    limits: Limits,
) -> Result<Download<S>, ReadError> {
    crate::read_export::check_quarantine(&quarantine)?;
    let (source, sink) = tokio::io::split(stream);
    let mut source = Source { reader: source, buffer: BytesMut::with_capacity(BUFFER) };
    let (pieces, from_guest) = pipe::inward();
    let mut reading = tokio::task::spawn_blocking(move || read_export(from_guest, &quarantine, limits));
    let heard = tokio::select! {
        biased;
        read = &mut reading => {
            let changes = joined(read)?;
            return Ok(Download { changes, source, sink });
        }
        heard = source.listen(Some(pieces)) => heard,
    };
    // It ended, or failed, before all was read; the thread finds the end of its pipe.
    let read = joined(reading.await);
    match (heard, read) {
        (Ok(Exit { code, message }), _) if code != 0 => Err(ReadError::Refused(reason(message))),
        (_, Err(error)) => Err(error),
        (Ok(_), Ok(_)) => Err(ReadError::Hostile("it ended before it was told that everything was taken".to_owned())),
        (Err(error), Ok(_)) => Err(ReadError::Stream(error)),
    }
}

fn joined(read: Result<Result<ChangeList, ReadError>, tokio::task::JoinError>) -> Result<ChangeList, ReadError> {
    read.unwrap_or_else(|error| Err(ReadError::Stream(io::Error::other(error))))
}

//! **Carrying** a transfer: frames of the stream on one side, the thread's pipes on the other.

use std::pin::Pin;

use archive::pipe::{self, Reader, Writer};
use bytes::{Bytes, BytesMut};
use contract::{
    frame::{Exit, Frame},
    guest::Reply,
    worktree::TransferSummary,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tree::GuestError;

use super::transfers::Transfer;
use crate::agent::MuxStream;

/// The bytes of a stream that are read at once.
const BUFFER: usize = 64 * 1024;

/// Answers that it begins, and does it. It is done to its end whatever becomes of the stream: without its client it fails by itself.
pub async fn serve(
    mut stream: MuxStream,
    transfer: Transfer,
    work: impl FnOnce(Reader, Writer, &tree::Transfer) -> Result<TransferSummary, GuestError> + Send + 'static,
) {
    if stream.write_reply(&Reply::Ok).await.is_err() {
        return;
    }
    let (sender, reader) = pipe::inward();
    let (writer, pieces) = pipe::outward();
    let watch = transfer.watch();
    let mut working = tokio::task::spawn_blocking(move || work(reader, writer, &watch));
    // Each owns its pipe, and lets go of it when it ends or is dropped: the thread finds the pipe's end then.
    let mut receiving = Some(Box::pin(receive(stream.clone(), sender)));
    let mut forwarding = Some(Box::pin(forward(stream.clone(), pieces)));
    let outcome = loop {
        tokio::select! {
            outcome = &mut working => break outcome,
            () = ended(&mut receiving) => receiving = None,
            () = ended(&mut forwarding) => forwarding = None,
            () = transfer.cut() => (receiving, forwarding) = (None, None),
        }
    };
    // What it wrote last is still in its pipe.
    if let Some(forwarding) = forwarding {
        forwarding.await;
    }
    let outcome = outcome.unwrap_or_else(|error| {
        Err(GuestError::Files { what: "the transfer".to_owned(), source: std::io::Error::other(error) })
    });
    let outcome = match outcome {
        Err(_) if transfer.watch().is_aborted() => Err(GuestError::Aborted),
        outcome => outcome,
    };
    transfer.end(&outcome);
    let exit = match outcome {
        Ok(_) => Exit { code: 0, message: None },
        Err(error) => {
            let error = error.to_api();
            let message = match &error.hint {
                Some(hint) => format!("{error} ({hint})"),
                None => error.to_string(),
            };
            Exit { code: 1, message: Some(message) }
        }
    };
    if send(&mut stream, &Frame::Exit(exit)).await.is_ok() {
        stream.shutdown().await.unwrap_or_default();
    }
}

/// Waits for what goes on; for ever where nothing does.
async fn ended(going_on: &mut Option<Pin<Box<impl Future<Output = ()>>>>) {
    match going_on {
        Some(future) => future.as_mut().await,
        None => std::future::pending().await,
    }
}

async fn send(stream: &mut MuxStream, frame: &Frame) -> std::io::Result<()> {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Passes on what the client sends, until its end, or until the stream is of no use.
async fn receive(mut stream: MuxStream, pieces: mpsc::Sender<Bytes>) {
    let mut buffer = BytesMut::with_capacity(BUFFER);
    loop {
        match Frame::decode(&mut buffer) {
            Ok(Some(Frame::Stdin(bytes))) => {
                let ended = bytes.is_empty();
                if pieces.send(bytes).await.is_err() || ended {
                    return;
                }
            }
            Ok(Some(_)) | Err(_) => return,
            Ok(None) => match stream.read_buf(&mut buffer).await {
                Ok(count) if count > 0 => {}
                _ => return,
            },
        }
    }
}

/// Passes on what the thread writes.
async fn forward(mut stream: MuxStream, mut pieces: mpsc::Receiver<Bytes>) {
    while let Some(piece) = pieces.recv().await {
        if send(&mut stream, &Frame::Stdout(piece)).await.is_err() {
            return;
        }
    }
}

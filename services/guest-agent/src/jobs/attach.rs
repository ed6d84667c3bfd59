//! A stream of frames ([`contract::frame`]) that is attached to a job.
//!
//! Output waits for the host to take it (the stream's window), input for the process to read it; neither holds
//! up the other. What a host that goes means for the job is [`Attachment`]'s to say.

use bytes::BytesMut;
use contract::frame::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Attachment, Next, entry::Entry, log::Source};
use crate::agent::MuxStream;

/// Carries frames until the job has ended, the host has gone, or another has taken its place.
pub async fn serve(mut stream: MuxStream, mut attachment: Attachment) {
    let entry = attachment.entry().clone();
    let mut writer = stream.clone();
    let (gone, finished) = {
        let may_write = attachment.writer();
        let output = carry_out(&mut writer, &mut attachment);
        tokio::select! {
            sent = output => (sent.is_err(), sent.is_ok()),
            () = receive(stream.clone(), &entry, may_write) => (true, false),
            () = stream.closed() => (true, false),
        }
    };
    // Only now, so that a job that is not kept is ended by it and not before.
    drop(attachment);
    if finished {
        stream.shutdown().await.unwrap_or_default();
    }
    tracing::trace!(gone, job = %entry.about.name, "an attachment ended");
}

async fn carry_out(writer: &mut MuxStream, attachment: &mut Attachment) -> std::io::Result<()> {
    loop {
        match attachment.next().await {
            Next::Piece(piece) => {
                if piece.missed > 0 {
                    send(writer, &Frame::Missed(piece.missed)).await?;
                }
                let frame = match piece.source {
                    Source::Stdout => Frame::Stdout(piece.bytes),
                    Source::Stderr => Frame::Stderr(piece.bytes),
                };
                send(writer, &frame).await?;
            }
            Next::Exit(exit) => return send(writer, &Frame::Exit(exit)).await,
            Next::Left(reason) => return send(writer, &Frame::Left(reason.to_owned())).await,
        }
    }
}

/// Sends one frame.
///
/// # Errors
/// The host has gone.
pub async fn send(stream: &mut MuxStream, frame: &Frame) -> std::io::Result<()> {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Takes the host's frames until it sends something wrong.
async fn receive(mut stream: MuxStream, entry: &Entry, writer: Option<u64>) {
    let writes = || writer.is_some_and(|id| entry.is_held_by(id));
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    loop {
        loop {
            match Frame::decode(&mut buffer) {
                // Whoever only listens has nothing to say; another may write meanwhile.
                Ok(Some(Frame::Stdin(_) | Frame::Resize(_) | Frame::Signal(_))) if !writes() => {}
                Ok(Some(Frame::Stdin(bytes))) if bytes.is_empty() => entry.close_input(),
                Ok(Some(Frame::Stdin(bytes))) => {
                    if let Some(queue) = entry.input() {
                        queue.send(bytes).await.unwrap_or_default();
                    }
                }
                Ok(Some(Frame::Resize(size))) => {
                    if let Some(control) = entry.control() {
                        control.resize(size);
                    }
                }
                Ok(Some(Frame::Signal(number))) => {
                    if let Some(control) = entry.control().filter(|_| entry.runs()) {
                        control.signal(i32::from(number));
                    }
                }
                Ok(None) => break,
                Ok(Some(_)) => return tracing::debug!("an exec stream sent a frame that is not a client's"),
                Err(error) => return tracing::debug!("an exec stream sent garbage: {error}"),
            }
        }
        match stream.read_buf(&mut buffer).await {
            Ok(length) if length > 0 => {}
            _ => {
                // A job that is kept cannot tell a host that has said all from one that was cut off, and waits for the next.
                if !entry.about.kept && writes() {
                    entry.close_input();
                }
                // Only a half has ended; whether the whole has is watched elsewhere.
                return std::future::pending().await;
            }
        }
    }
}

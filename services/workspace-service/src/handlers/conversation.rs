//! A **conversation** with a process in a guest: frames of standard input there, frames of output and the exit back.

use std::{convert::Infallible, time::Duration};

use bus::ByteStream;
use bytes::{Bytes, BytesMut};
use contract::{
    ApiError,
    frame::{Exit, Frame},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    time::timeout,
};

use crate::domain::output::Collected;

/// SIGKILL on every Linux.
const SIGKILL: u8 = 9;

/// How long a killed process has until its end is told; its output is still read. The caller adds
/// [`contract::deadline::WAIT_SLACK`], which is longer.
const KILL_GRACE: Duration = Duration::from_secs(2);

/// How long the reset of a stream may take to reach the bus.
const RESET_GRACE: Duration = Duration::from_secs(1);

/// A process in hand, and what it printed so far.
pub struct Conversation {
    reader: ReadHalf<ByteStream>,
    writer: WriteHalf<ByteStream>,
    buffer: BytesMut,
    /// All input has been sent, so that another frame may follow.
    fed: bool,
    /// Its standard output.
    pub stdout: Collected,
    /// Its standard error.
    pub stderr: Collected,
}

impl Conversation {
    /// Over a stream that the guest has taken.
    pub fn new(stream: ByteStream) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let (stdout, stderr) = (Collected::default(), Collected::default());
        Self { reader, writer, buffer: BytesMut::new(), fed: false, stdout, stderr }
    }

    /// Sends all of the input and its end, and reads until the process has ended. What does not fit into the collected
    /// output is read on and dropped, so that the process is never held up. May be left at any await and
    /// followed by [`Conversation::kill`].
    ///
    /// # Errors
    /// The stream ended before the process did: it says why.
    pub async fn run(&mut self, stdin: Bytes) -> Result<Exit, ApiError> {
        let Self { reader, writer, buffer, fed, stdout, stderr } = self;
        let feeding = async {
            match feed(writer, &stdin).await {
                Ok(()) => *fed = true,
                // The reader learns of it too, and says why.
                Err(error) => tracing::debug!(%error, "not all of the input was sent"),
            }
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            exit = receive(reader, buffer, stdout, stderr) => exit,
            never = feeding => match never {},
        }
    }

    /// Kills the process; whether its end was seen. Where it was not, a reset makes the guest end it.
    pub async fn kill(&mut self) -> bool {
        if !self.fed {
            // Half a frame may be on its way, and the process may never read the rest.
            return false;
        }
        let Self { reader, writer, buffer, stdout, stderr, .. } = self;
        let killing = async {
            let mut signal = BytesMut::new();
            Frame::Signal(SIGKILL).encode(&mut signal);
            writer.write_all(&signal).await?;
            writer.flush().await?;
            Ok::<_, std::io::Error>(receive(reader, buffer, stdout, stderr).await.is_ok())
        };
        matches!(timeout(KILL_GRACE, killing).await, Ok(Ok(true)))
    }

    /// Ends the stream in good order, after the process.
    pub async fn close(self) {
        let mut stream = self.reader.unsplit(self.writer);
        if let Err(error) = stream.shutdown().await {
            tracing::debug!(%error, "the stream was closed already");
        }
    }

    /// Ends the stream at once, and with it the process.
    pub async fn reset(self, reason: &str) {
        let stream = self.reader.unsplit(self.writer);
        if timeout(RESET_GRACE, stream.reset(reason)).await.is_err() {
            tracing::debug!("a reset may be lost; the other end notices the silence");
        }
    }
}

async fn feed(writer: &mut WriteHalf<ByteStream>, stdin: &Bytes) -> std::io::Result<()> {
    let mut frames = BytesMut::new();
    if !stdin.is_empty() {
        Frame::Stdin(stdin.clone()).encode(&mut frames);
    }
    // An empty frame is the end of the file.
    Frame::Stdin(Bytes::new()).encode(&mut frames);
    writer.write_all(&frames).await?;
    writer.flush().await
}

/// Reads until the exit; every await may be the last one, and a later call goes on.
async fn receive(
    reader: &mut ReadHalf<ByteStream>,
    buffer: &mut BytesMut,
    stdout: &mut Collected,
    stderr: &mut Collected,
) -> Result<Exit, ApiError> {
    loop {
        let frame = Frame::decode(buffer)
            .map_err(|error| ApiError::internal(format!("the guest sent what cannot be read: {error}")))?;
        match frame {
            Some(Frame::Stdout(data)) => stdout.push(&data),
            Some(Frame::Stderr(data)) => stderr.push(&data),
            Some(Frame::Exit(exit)) => return Ok(exit),
            Some(Frame::Stdin(_) | Frame::Resize(_) | Frame::Signal(_)) => {
                return Err(ApiError::internal("the guest sent a frame only clients send"));
            }
            Some(Frame::Left(reason)) => return Err(lost(&reason)),
            Some(Frame::Missed(_)) => stdout.miss(),
            None => match reader.read_buf(buffer).await {
                Ok(0) => return Err(lost("its stream ended")),
                Ok(_) => {}
                Err(error) => return Err(lost(&error.to_string())),
            },
        }
    }
}

fn lost(reason: &str) -> ApiError {
    ApiError::unavailable(format!("the command was lost before it ended: {reason}"))
        .hint("`warren vm show` tells whether the VM still runs; the command may have done a part of its work")
}

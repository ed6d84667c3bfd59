//! The streams between this process and a command in a VM.

use bus::ByteStream;
use bytes::{Bytes, BytesMut};
use contract::{
    ApiError,
    frame::{Exit, Frame},
    job::JobName,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, Stderr, Stdout, WriteHalf},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
};

use super::leave::LeaveKeys;
use crate::{
    client::Client,
    failure::{Failure, Outcome, SIGINT_EXIT},
    output,
    terminal::{self, RawMode},
};

/// How many frames may wait to be sent: standard input is read no faster than the guest takes it.
const QUEUE: usize = 4;
/// How many Ctrl-C are passed on before the next one ends the client itself.
const INTERRUPTS_PASSED: u32 = 2;

/// What this process and a command have to do with each other.
#[derive(Debug)]
pub struct Conversation {
    /// The VM, as the user calls it.
    pub vm: String,
    /// The job it is, where it goes on without this process.
    pub job: Option<JobName>,
    /// Whether standard input is passed on; where not, whether the command's ends (`Some(false)`) or is left alone.
    pub input: Option<bool>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether this process' own terminal is made raw for it.
    pub raw: bool,
}

/// How it ended.
enum End {
    Exit(Exit),
    /// The job goes on without us, by its own word.
    Left(String),
}

/// Passes everything on until the command has ended, or the user leaves it.
///
/// # Errors
/// The stream was cut, or another client took this one's place.
pub async fn converse(client: &Client, stream: ByteStream, how: Conversation) -> Result<Outcome, Failure> {
    // Raw only now: an error before this is printed to an ordinary terminal.
    let raw = how.raw.then(RawMode::enter).transpose();
    let raw = raw.map_err(|error| ApiError::internal(format!("the terminal cannot be made raw: {error}")))?;
    let (reader, writer) = tokio::io::split(stream);
    let (frames, queue) = mpsc::channel(QUEUE);
    let sending = tokio::spawn(send(writer, queue));
    let (leave, left) = oneshot::channel();
    if let Some(interactive) = how.input {
        let keys = (how.raw && how.job.is_some()).then(LeaveKeys::default);
        tokio::spawn(read_input(interactive, frames.clone(), keys, leave));
    }
    if how.tty {
        tokio::spawn(watch_size(frames.clone()));
    }
    let ended = tokio::select! {
        ended = receive(reader, &how) => ended,
        code = pass_signals(frames, how.job.is_some()) => return parted(client, raw, &sending, &how, code).await,
        () = keyed(left) => return parted(client, raw, &sending, &how, 0).await,
    };
    drop(raw);
    sending.abort();
    match ended? {
        End::Exit(exit) => {
            if let Some(message) = &exit.message {
                output::note(&format!("warren: {}", output::clean(message)));
            }
            // As everywhere: the low byte, like wait(2) would give it.
            Ok(Outcome::Exit(exit.code.to_le_bytes()[0]))
        }
        End::Left(reason) => Err(ApiError::aborted(output::clean(&reason)).into()),
    }
}

/// Prints what a job prints, without a word to it, until it has ended or the user has enough.
///
/// # Errors
/// The stream was cut.
pub async fn listen(stream: ByteStream, vm: String) -> Result<Outcome, Failure> {
    let (reader, _sink) = tokio::io::split(stream);
    let how = Conversation { vm, job: None, input: None, tty: false, raw: false };
    receive(reader, &how).await.map(|_| Outcome::Done)
}

/// Ends only when the keys that leave were pressed.
async fn keyed(left: oneshot::Receiver<()>) {
    if left.await.is_err() {
        std::future::pending().await
    }
}

/// The user leaves. Dropping the stream resets it, which ends a command that is no job; a flush lets the reset out.
async fn parted(
    client: &Client,
    raw: Option<RawMode>,
    sending: &tokio::task::JoinHandle<()>,
    how: &Conversation,
    code: u8,
) -> Result<Outcome, Failure> {
    drop(raw);
    sending.abort();
    tokio::task::yield_now().await;
    client.bus().flush().await?;
    match &how.job {
        None => output::note("left the command: it has been told to end"),
        Some(job) => output::note(&format!(
            "left the job {job}, which goes on; `warren exec attach {} {job}` comes back to it",
            how.vm
        )),
    }
    Ok(Outcome::Exit(code))
}

/// Sends frames until nobody has any more; then the stream is left to its reader.
async fn send(mut writer: WriteHalf<ByteStream>, mut queue: mpsc::Receiver<Frame>) {
    let mut buffer = BytesMut::new();
    while let Some(frame) = queue.recv().await {
        frame.encode(&mut buffer);
        let sent = async {
            writer.write_all(&buffer).await?;
            writer.flush().await
        };
        if let Err(error) = sent.await {
            // The reader learns of it too, and says why.
            tracing::debug!(%error, "a frame was not sent");
            return;
        }
        buffer.clear();
    }
}

async fn read_input(
    interactive: bool,
    frames: mpsc::Sender<Frame>,
    mut keys: Option<LeaveKeys>,
    leave: oneshot::Sender<()>,
) {
    let mut input = tokio::io::stdin();
    let mut buffer = vec![0; 32 * 1024];
    let mut open = interactive;
    while open {
        let n = match input.read(&mut buffer).await {
            Ok(n) => n,
            Err(error) => {
                tracing::warn!(%error, "standard input cannot be read");
                0
            }
        };
        open = n > 0;
        let (bytes, leaves) = match &mut keys {
            Some(keys) => keys.pass(&buffer[..n]),
            None => (Bytes::copy_from_slice(&buffer[..n]), false),
        };
        if !bytes.is_empty() && frames.send(Frame::Stdin(bytes)).await.is_err() {
            return;
        }
        if leaves {
            // Whoever waited for it may have ended meanwhile.
            return leave.send(()).unwrap_or_default();
        }
    }
    // An empty frame is the end of the file. Where nobody takes it, the command has ended already.
    if frames.send(Frame::Stdin(Bytes::new())).await.is_err() {
        tracing::debug!("the command ended before its input");
    }
}

async fn watch_size(frames: mpsc::Sender<Frame>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    while changes.recv().await.is_some() {
        if let Some(size) = terminal::size()
            && frames.send(Frame::Resize(size)).await.is_err()
        {
            return;
        }
    }
}

/// Passes signals on to the command; returns with an exit code when the user insists on leaving. In raw mode Ctrl-C is a byte of
/// input and comes by that road. What ends this process does not end a job: it is left.
async fn pass_signals(frames: mpsc::Sender<Frame>, job: bool) -> u8 {
    let kinds = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup()));
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = kinds else {
        return std::future::pending().await;
    };
    let mut interrupts = 0;
    loop {
        let number = tokio::select! {
            _ = interrupt.recv() => { interrupts += 1; nix::libc::SIGINT }
            _ = terminate.recv() => nix::libc::SIGTERM,
            _ = hangup.recv() => nix::libc::SIGHUP,
        };
        let number = number.to_le_bytes()[0];
        if job && i32::from(number) != nix::libc::SIGINT {
            return 128 + number;
        }
        // The queue may be full of input the guest does not take; the user's wish to leave must not wait for it.
        let sent = frames.try_send(Frame::Signal(number)).is_ok();
        if interrupts > INTERRUPTS_PASSED || !sent {
            return SIGINT_EXIT;
        }
    }
}

async fn receive(mut reader: ReadHalf<ByteStream>, how: &Conversation) -> Result<End, Failure> {
    let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
    let mut buffer = BytesMut::with_capacity(64 * 1024);
    loop {
        let frame = Frame::decode(&mut buffer)
            .map_err(|error| ApiError::internal(format!("the guest sent what cannot be read: {error}")))?;
        let written = match frame {
            Some(Frame::Stdout(data)) => out.write_all(&data).await,
            Some(Frame::Stderr(data)) => err.write_all(&data).await,
            Some(Frame::Missed(bytes)) => {
                let note = format!("warren: {bytes} bytes of output are remembered no more\n");
                err.write_all(note.as_bytes()).await
            }
            Some(Frame::Exit(exit)) => return flushed(out, err, End::Exit(exit)).await,
            Some(Frame::Left(reason)) => return flushed(out, err, End::Left(reason)).await,
            Some(Frame::Stdin(_) | Frame::Resize(_) | Frame::Signal(_)) => {
                return Err(ApiError::internal("the guest sent a frame only clients send").into());
            }
            None => {
                // Whole frames are out before the next wait, so that a prompt without a newline is seen.
                let flushed = async {
                    out.flush().await?;
                    err.flush().await
                };
                flushed.await.map_err(|error| Failure::writing(&error))?;
                match reader.read_buf(&mut buffer).await {
                    Ok(0) => return Err(lost("its stream ended", how).into()),
                    Ok(_) => Ok(()),
                    Err(error) => return Err(lost(&error.to_string(), how).into()),
                }
            }
        };
        written.map_err(|error| Failure::writing(&error))?;
    }
}

/// The end, once all that came before it is out.
async fn flushed(mut out: Stdout, mut err: Stderr, end: End) -> Result<End, Failure> {
    let flushed = async {
        out.flush().await?;
        err.flush().await
    };
    flushed.await.map(|()| end).map_err(|error| Failure::writing(&error))
}

fn lost(reason: &str, how: &Conversation) -> ApiError {
    match &how.job {
        None => ApiError::unavailable(format!("the command was lost before it ended: {reason}"))
            .hint("`warren vm show` tells whether the VM still runs"),
        Some(job) => ApiError::unavailable(format!("the connection to the job was lost: {reason}"))
            .hint(format!("`warren exec attach {} {job}` comes back to it where the VM still runs", how.vm)),
    }
}

//! `warren exec`: a process in a VM whose streams, terminal, signals and exit code are this process's own.

use std::io::{self, IsTerminal};

use bus::ByteStream;
use bytes::{Bytes, BytesMut};
use contract::{
    ApiError,
    frame::{Exit, Frame},
    workspace::{Command, SessionKind, TerminalSize},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{
    args::{ExecArgs, Global},
    client::Client,
    failure::{Failure, Outcome, SIGINT_EXIT},
    output,
    terminal::{self, RawMode},
};

/// What a terminal is where none can be asked.
const DEFAULT_SIZE: TerminalSize = TerminalSize { columns: 80, rows: 24 };
/// How many frames may wait to be sent: standard input is read no faster than the guest takes it.
const QUEUE: usize = 4;
/// How many Ctrl-C are passed on before the next one ends the client itself.
const INTERRUPTS_PASSED: u32 = 2;

/// Runs a command in a VM.
///
/// # Errors
/// It could not be started, or its stream was cut.
pub async fn run(global: &Global, args: ExecArgs) -> Result<Outcome, Failure> {
    let (interactive, tty) = (args.interactive, args.tty);
    let client = Client::connect(global).await?;
    let stream = client.open(&args.vm, SessionKind::Exec(command(&args)?)).await?;
    // Raw only now: an error before this is printed to an ordinary terminal.
    let raw = if tty && interactive && io::stdin().is_terminal() {
        let raw = RawMode::enter();
        Some(raw.map_err(|error| ApiError::internal(format!("the terminal cannot be made raw: {error}")))?)
    } else {
        None
    };
    let (reader, writer) = tokio::io::split(stream);
    let (frames, queue) = mpsc::channel(QUEUE);
    let sending = tokio::spawn(send(writer, queue));
    tokio::spawn(read_input(interactive, frames.clone()));
    if tty {
        tokio::spawn(watch_size(frames.clone()));
    }
    let exit = tokio::select! {
        exit = receive(reader) => exit,
        () = pass_signals(frames) => {
            drop(raw);
            // Dropping the stream resets it, which ends the command; a flush lets the reset out.
            sending.abort();
            tokio::task::yield_now().await;
            client.bus().flush().await?;
            output::note("left the command: it has been told to end");
            return Ok(Outcome::Exit(SIGINT_EXIT));
        }
    };
    drop(raw);
    sending.abort();
    let exit = exit?;
    if let Some(message) = &exit.message {
        output::note(&format!("warren: {}", output::clean(message)));
    }
    // As everywhere: the low byte, like wait(2) would give it.
    Ok(Outcome::Exit(exit.code.to_le_bytes()[0]))
}

fn command(args: &ExecArgs) -> Result<Command, ApiError> {
    if let Some(wrong) = args.env.iter().find(|pair| pair.split_once('=').is_none_or(|(name, _)| name.is_empty())) {
        return Err(ApiError::invalid_argument(format!("{wrong:?} is not NAME=VALUE")));
    }
    let mut env = args.env.clone();
    let names_term = env.iter().any(|pair| pair.starts_with("TERM="));
    if args.tty
        && !names_term
        && let Ok(term) = std::env::var("TERM")
    {
        env.push(format!("TERM={term}"));
    }
    Ok(Command {
        argv: args.command.clone(),
        env,
        cwd: args.workdir.clone(),
        user: args.user.clone(),
        tty: args.tty.then(|| terminal::size().unwrap_or(DEFAULT_SIZE)),
    })
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

async fn read_input(interactive: bool, frames: mpsc::Sender<Frame>) {
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
        if open && frames.send(Frame::Stdin(Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
            return;
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

/// Passes signals on to the command; returns when the user insists on leaving. In raw mode Ctrl-C is a byte of
/// input and comes by that road.
async fn pass_signals(frames: mpsc::Sender<Frame>) {
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
        // The queue may be full of input the guest does not take; the user's wish to leave must not wait for it.
        let sent = frames.try_send(Frame::Signal(number.to_le_bytes()[0])).is_ok();
        if interrupts > INTERRUPTS_PASSED || !sent {
            return;
        }
    }
}

async fn receive(mut reader: ReadHalf<ByteStream>) -> Result<Exit, Failure> {
    let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
    let mut buffer = BytesMut::with_capacity(64 * 1024);
    loop {
        let frame = Frame::decode(&mut buffer)
            .map_err(|error| ApiError::internal(format!("the guest sent what cannot be read: {error}")))?;
        let written = match frame {
            Some(Frame::Stdout(data)) => out.write_all(&data).await,
            Some(Frame::Stderr(data)) => err.write_all(&data).await,
            Some(Frame::Exit(exit)) => {
                let flushed = async {
                    out.flush().await?;
                    err.flush().await
                };
                flushed.await.map_err(|error| Failure::writing(&error))?;
                return Ok(exit);
            }
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
                    Ok(0) => return Err(lost("its stream ended").into()),
                    Ok(_) => Ok(()),
                    Err(error) => return Err(lost(&error.to_string()).into()),
                }
            }
        };
        written.map_err(|error| Failure::writing(&error))?;
    }
}

fn lost(reason: &str) -> ApiError {
    ApiError::unavailable(format!("the command was lost before it ended: {reason}"))
        .hint("`warren vm show` tells whether the VM still runs")
}

//! Exec: a process whose streams are frames ([`contract::frame`]) on a stream of the channel.
//!
//! Output waits for the host to take it (the stream's window), input for the process to read it; neither holds
//! up the other. A host that closes its sending half has sent all of its input; one that drops the stream has gone,
//! and the process is ended: SIGHUP, then SIGKILL.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

use bytes::{Bytes, BytesMut};
use contract::{
    ApiError,
    frame::{Exit, Frame},
    guest::Reply,
    workspace::Command,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use crate::{
    agent::{MuxStream, Shared},
    process::{Control, Environment, Input, Job, Launch, LaunchError, Output, Program, user},
};

/// How many frames of input may wait for the process, each of at most 64 KiB.
const INPUT_QUEUE: usize = 2;
/// What an end of file is on a terminal (^D).
pub const END_OF_TRANSMISSION: &[u8] = b"\x04";

/// Runs a command for the host.
pub async fn serve(mut stream: MuxStream, command: &Command, shared: &Shared) {
    let launch = match prepare(command, &shared.settings.image.env) {
        Ok(launch) => launch,
        Err(error) => {
            stream.write_reply(&Reply::Error(error)).await.unwrap_or_default();
            return stream.shutdown().await.unwrap_or_default();
        }
    };
    if stream.write_reply(&Reply::Ok).await.is_err() {
        return;
    }
    let started = launch.and_then(|launch| match command.tty {
        Some(size) => Job::start_in_terminal(&launch, size, |_| {}),
        None => Job::start(&launch),
    });
    let exit = match started {
        Ok(job) => match carry(&stream, job).await {
            Some(status) => Exit { code: exit_code(status), message: None },
            None => return,
        },
        Err(error) => Exit { code: error.exit_code(), message: Some(crate::boot::chain(&error)) },
    };
    if send(&mut stream, &Frame::Exit(exit)).await.is_ok() {
        stream.shutdown().await.unwrap_or_default();
    }
}

/// What to run. The outer error refuses the request; the inner one is the process' own failure to start.
fn prepare(command: &Command, image: &[String]) -> Result<Result<Launch, LaunchError>, ApiError> {
    let Some(name) = command.argv.first() else {
        return Err(ApiError::invalid_argument("argv is empty").hint("name a program to run"));
    };
    if let Some(pair) = command.env.iter().find(|pair| !pair.contains('=') || pair.starts_with('=')) {
        return Err(ApiError::invalid_argument(format!("{pair:?} in env is not NAME=value")));
    }
    let account = user::find(command.user.as_deref().unwrap_or_default()).map_err(|error| {
        ApiError::invalid_argument(error.to_string()).hint("name a user of the image, or uid[:gid]")
    })?;
    let mut environment = Environment::new(image, &account);
    if command.tty.is_some() {
        environment.set("TERM", "xterm");
    }
    environment.extend(&command.env);
    let cwd = command.cwd.clone().unwrap_or_else(|| home(&account.home));
    Ok(Program::find(name, environment.path(), &cwd).map(|program| Launch {
        program,
        argv: command.argv.clone(),
        environment,
        cwd,
        account,
        terminal: command.tty.is_some(),
    }))
}

/// A home directory, or `/` where it does not exist.
pub fn home(home: &str) -> String {
    if std::path::Path::new(home).is_dir() { home.to_owned() } else { "/".to_owned() }
}

/// Carries a job's streams; nothing when the host has gone.
async fn carry(stream: &MuxStream, mut job: Job) -> Option<ExitStatus> {
    let (input, control) = (job.take_input(), job.control());
    let (queue, queued) = mpsc::channel(INPUT_QUEUE);
    let mut writer = stream.clone();
    let output = async {
        while let Some(output) = job.next_output().await {
            let frame = match output {
                Output::Stdout(bytes) => Frame::Stdout(bytes.into()),
                Output::Stderr(bytes) => Frame::Stderr(bytes.into()),
            };
            send(&mut writer, &frame).await.ok()?;
        }
        Some(job.status().await)
    };
    let ended = tokio::select! {
        ended = output => ended,
        () = receive(stream.clone(), control.clone(), queue) => None,
        () = feed(input, queued, control.has_terminal()) => None,
        () = stream.closed() => None,
    };
    if ended.is_none() {
        job.hang_up().await;
    }
    ended
}

async fn send(stream: &mut MuxStream, frame: &Frame) -> std::io::Result<()> {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Takes the host's frames until it sends something wrong. An end of the stream is the end of input, and then waits.
async fn receive(mut stream: MuxStream, control: Control, queue: mpsc::Sender<Bytes>) {
    let mut queue = Some(queue);
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    loop {
        loop {
            match Frame::decode(&mut buffer) {
                Ok(Some(Frame::Stdin(bytes))) if bytes.is_empty() => queue = None,
                Ok(Some(Frame::Stdin(bytes))) => {
                    if let Some(queue) = &queue {
                        queue.send(bytes).await.unwrap_or_default();
                    }
                }
                Ok(Some(Frame::Resize(size))) => control.resize(size),
                Ok(Some(Frame::Signal(number))) => control.signal(i32::from(number)),
                Ok(None) => break,
                Ok(Some(_)) => return tracing::debug!("an exec stream sent a frame that is not a client's"),
                Err(error) => return tracing::debug!("an exec stream sent garbage: {error}"),
            }
        }
        match stream.read_buf(&mut buffer).await {
            Ok(length) if length > 0 => {}
            _ => {
                drop(queue);
                // Only a half has ended; whether the whole has is watched elsewhere.
                return std::future::pending().await;
            }
        }
    }
}

/// Writes queued input to the process. Ends never: the process' end is what counts.
async fn feed(input: Option<Input>, mut queued: mpsc::Receiver<Bytes>, terminal: bool) {
    if let Some(mut input) = input {
        let mut open = true;
        while let Some(bytes) = queued.recv().await {
            // A process that does not read any more gets nothing more, and loses nothing it wants.
            open = open && input.write_all(&bytes).await.is_ok() && input.flush().await.is_ok();
        }
        if open && terminal {
            input.write_all(END_OF_TRANSMISSION).await.unwrap_or_default();
        }
    }
    std::future::pending().await
}

/// The exit code as a shell would give it.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

//! Forwarding to unix sockets of the VM (`direct-streamlocal@openssh.com`, OpenSSH's PROTOCOL section 2.4): what `ssh -L PORT:/run/some.sock` does.
//!
//! Who may connect to a socket is a matter of its file's permissions, and who did of its peer's credentials; so guest-agent runs once
//! more, as the user that has logged in, connects and passes bytes on.

use std::{
    fs, io,
    os::fd::OwnedFd,
    process::{ExitCode, Stdio},
    sync::Arc,
    time::Duration,
};

use russh::{ChannelOpenFailure, ChannelWriteHalf, server::ChannelOpenHandle, server::Msg};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::pipe::{Receiver, Sender},
    },
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::{Lab, forward, inbound::Inbound};
use crate::process::{Environment, Launch, Program, user::Account};

/// The argument that makes guest-agent such a connector; the socket's path follows.
pub const ARGUMENT: &str = "streamlocal";
/// What it says once it is connected.
const CONNECTED: u8 = b'+';
/// How long that may take.
const CONNECT_WAIT: Duration = Duration::from_secs(15);

/// Connects to a socket as a user and carries the channel's bytes there.
pub(super) async fn connect(
    path: String,
    account: Account,
    lab: Arc<Lab>,
    writer: ChannelWriteHalf<Msg>,
    inbound: Inbound,
    reply: ChannelOpenHandle,
) {
    match tokio::time::timeout(CONNECT_WAIT, connector(&path, account, &lab)).await {
        Ok(Ok((child, input, output))) => {
            reply.accept().await;
            forward::carry(output, input, writer, inbound).await;
            // Whatever it still does, nobody listens.
            drop(child);
        }
        Ok(Err(error)) => {
            tracing::debug!("cannot forward to {path}: {error}");
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
        }
        Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
    }
}

/// Starts the process that connects. It is killed when it is dropped.
async fn connector(path: &str, account: Account, lab: &Lab) -> io::Result<(Child, ChildStdin, ChildStdout)> {
    let launch = Launch {
        program: Program::Agent(Arc::clone(&lab.program)),
        argv: vec!["guest-agent".to_owned(), ARGUMENT.to_owned(), path.to_owned()],
        environment: Environment::new(&[], &account),
        cwd: "/".to_owned(),
        account,
        terminal: false,
    };
    let mut command = Command::from(launch.command().map_err(io::Error::other)?);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn()?;
    let (Some(input), Some(mut output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    match output.read_u8().await {
        Ok(CONNECTED) => Ok((child, input, output)),
        _ => Err(io::ErrorKind::ConnectionRefused.into()),
    }
}

/// Connects to a socket, says so, and passes bytes between it and the standard streams, to the end of both directions.
pub fn main(path: &str) -> ExitCode {
    let passed = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(pass(path)));
    match passed {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

async fn pass(path: &str) -> io::Result<()> {
    let (input, output): (OwnedFd, OwnedFd) = (nix::unistd::dup(io::stdin())?, nix::unistd::dup(io::stdout())?);
    // So that dropping the copy is the end of the output.
    nix::unistd::dup2_stdout(fs::File::open("/dev/null")?)?;
    let (mut input, mut output) = (Receiver::from_owned_fd(input)?, Sender::from_owned_fd(output)?);
    let (mut from_socket, mut to_socket) = UnixStream::connect(path).await?.into_split();
    output.write_u8(CONNECTED).await?;
    let inward = async {
        tokio::io::copy(&mut input, &mut to_socket).await?;
        to_socket.shutdown().await
    };
    let outward = async move {
        let copied = tokio::io::copy(&mut from_socket, &mut output).await;
        drop(output);
        copied.map(drop)
    };
    tokio::try_join!(inward, outward).map(drop)
}

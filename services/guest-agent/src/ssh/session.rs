//! A session: one process for one channel.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus, sync::Arc};

use russh::{
    ChannelWriteHalf, Sig,
    server::{Handle, Msg},
};
use tokio::io::AsyncWriteExt;

use super::{Lab, inbound::Inbound, sftp, terminal::Request};
use crate::{
    exec,
    process::{Control, Environment, Input, Job, Launch, LaunchError, Output, Program, user::Account},
};

/// The channel of standard error (RFC 4254 section 5.2).
const STDERR: u32 = 1;

/// What to run.
#[derive(Debug)]
pub enum What {
    /// The user's login shell.
    Shell,
    /// A command line for the user's shell.
    Command(String),
    /// The sftp server.
    Sftp,
}

/// A session whose process has not been asked for yet.
pub struct Pending {
    /// Variables the client has set.
    pub variables: Vec<(String, String)>,
    /// The terminal it wants.
    pub terminal: Option<Request>,
    writer: ChannelWriteHalf<Msg>,
}

impl Pending {
    /// Nothing asked for yet.
    pub fn new(writer: ChannelWriteHalf<Msg>) -> Self {
        Self { variables: Vec::new(), terminal: None, writer }
    }
}

/// Starts a session's process and the task that carries its streams. Says how to control it when it runs.
pub fn start(
    pending: Pending,
    what: What,
    lab: &Lab,
    account: &Account,
    handle: Handle,
    inbound: Inbound,
) -> Option<Control> {
    let Pending { variables, terminal, writer } = pending;
    // sftp speaks binary.
    let terminal = terminal.filter(|_| !matches!(what, What::Sftp));
    let launch = launch(&what, &variables, terminal.as_ref(), lab, account);
    let started = match &terminal {
        Some(request) => Job::start_in_terminal(&launch, &lab.cgroups, request.size, |modes| request.apply(modes)),
        None => Job::start(&launch, &lab.cgroups),
    };
    let control = started.as_ref().ok().map(Job::control);
    tokio::spawn(run(started, terminal.is_some(), writer, handle, inbound));
    control
}

fn launch(
    what: &What,
    variables: &[(String, String)],
    terminal: Option<&Request>,
    lab: &Lab,
    account: &Account,
) -> Launch {
    let mut environment = Environment::new(&lab.environment, account);
    for (name, value) in variables {
        environment.set(name, value);
    }
    if let Some(request) = terminal {
        environment.set("TERM", &request.term);
    }
    let shell = if std::path::Path::new(&account.shell).exists() { account.shell.as_str() } else { "/bin/sh" };
    let name = shell.rsplit('/').next().unwrap_or("sh");
    let (program, argv) = match what {
        What::Shell => (Program::File(shell.into()), vec![format!("-{name}")]),
        What::Command(command) => {
            (Program::File(shell.into()), vec![name.to_owned(), "-c".to_owned(), command.clone()])
        }
        What::Sftp => {
            (Program::Agent(Arc::clone(&lab.program)), vec!["guest-agent".to_owned(), sftp::ARGUMENT.to_owned()])
        }
    };
    let (cwd, account) = (exec::home(&account.home), account.clone());
    Launch { program, argv, environment, cwd, account, terminal: terminal.is_some() }
}

/// Carries a process' streams and reports its end. A client that has gone already is told nothing.
async fn run(
    started: Result<Job, LaunchError>,
    terminal: bool,
    writer: ChannelWriteHalf<Msg>,
    handle: Handle,
    inbound: Inbound,
) {
    let reported = async {
        match started {
            Ok(job) => match carry(job, terminal, &writer, &inbound).await {
                Some(status) => report(status, &writer, &handle).await,
                None => Err(russh::Error::Disconnect),
            },
            Err(error) => {
                let message = format!("guest-agent: {}\r\n", crate::boot::chain(&error));
                writer.extended_data_bytes(STDERR, message.into_bytes()).await?;
                writer.exit_status(error.exit_code() as u32).await
            }
        }?;
        writer.eof().await?;
        writer.close().await
    };
    // The writer waits for window that a lost connection never gives.
    tokio::select! {
        outcome = reported => if let Err(error) = outcome {
            tracing::debug!("a session's client has gone: {error}");
        },
        () = gone_for_long(&inbound) => tracing::debug!("a session's client has gone"),
    }
}

/// Returns when the client has gone and the process had its time to hang up.
async fn gone_for_long(inbound: &Inbound) {
    inbound.closed().await;
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
}

/// Carries streams until the process has ended and its output was sent; nothing when the client has gone.
async fn carry(mut job: Job, terminal: bool, writer: &ChannelWriteHalf<Msg>, inbound: &Inbound) -> Option<ExitStatus> {
    let input = job.take_input();
    let output = async {
        while let Some(output) = job.next_output().await {
            match output {
                Output::Stdout(bytes) => writer.data_bytes(bytes).await,
                Output::Stderr(bytes) => writer.extended_data_bytes(STDERR, bytes).await,
            }
            .ok()?;
        }
        Some(job.status().await)
    };
    let ended = tokio::select! {
        ended = output => ended,
        () = feed(input, terminal, inbound) => None,
        () = inbound.closed() => None,
    };
    if ended.is_none() {
        job.hang_up().await;
    }
    ended
}

/// Writes what the client sends to the process. Ends never: the process' end is what counts.
async fn feed(input: Option<Input>, terminal: bool, inbound: &Inbound) {
    if let Some(mut input) = input {
        let mut open = true;
        while let Some(bytes) = inbound.next().await {
            open = open && input.write_all(&bytes).await.is_ok() && input.flush().await.is_ok();
        }
        if open && terminal {
            input.write_all(exec::END_OF_TRANSMISSION).await.unwrap_or_default();
        }
    }
    std::future::pending().await
}

async fn report(status: ExitStatus, writer: &ChannelWriteHalf<Msg>, handle: &Handle) -> Result<(), russh::Error> {
    match status.signal() {
        Some(number) => handle
            .exit_signal_request(writer.id(), signal_name(number), status.core_dumped(), String::new(), String::new())
            .await
            .map_err(|()| russh::Error::SendError),
        None => writer.exit_status(exec::exit_code(status) as u32).await,
    }
}

/// A signal's number.
pub fn signal_number(signal: &Sig) -> Option<i32> {
    Some(match signal {
        Sig::ABRT => libc::SIGABRT,
        Sig::ALRM => libc::SIGALRM,
        Sig::FPE => libc::SIGFPE,
        Sig::HUP => libc::SIGHUP,
        Sig::ILL => libc::SIGILL,
        Sig::INT => libc::SIGINT,
        Sig::KILL => libc::SIGKILL,
        Sig::PIPE => libc::SIGPIPE,
        Sig::QUIT => libc::SIGQUIT,
        Sig::SEGV => libc::SIGSEGV,
        Sig::TERM => libc::SIGTERM,
        Sig::USR1 => libc::SIGUSR1,
        Sig::Custom(name) if name == "USR2" => libc::SIGUSR2,
        Sig::Custom(_) => return None,
    })
}

fn signal_name(number: i32) -> Sig {
    match number {
        libc::SIGABRT => Sig::ABRT,
        libc::SIGALRM => Sig::ALRM,
        libc::SIGFPE => Sig::FPE,
        libc::SIGHUP => Sig::HUP,
        libc::SIGILL => Sig::ILL,
        libc::SIGINT => Sig::INT,
        libc::SIGKILL => Sig::KILL,
        libc::SIGPIPE => Sig::PIPE,
        libc::SIGQUIT => Sig::QUIT,
        libc::SIGSEGV => Sig::SEGV,
        libc::SIGTERM => Sig::TERM,
        libc::SIGUSR1 => Sig::USR1,
        other => {
            let name = nix::sys::signal::Signal::try_from(other).map_or("UNKNOWN", |signal| &signal.as_str()[3..]);
            Sig::Custom(format!("{name}@warren"))
        }
    }
}

//! `warren exec`: a process in a VM whose streams, terminal, signals and exit code are this process's own.

mod converse;
mod leave;

use std::io::{self, IsTerminal};

use bus::ByteStream;
use contract::{
    ApiError,
    job::JobName,
    workspace::{self, Command, ExecRequest, SessionKind, TerminalSize},
};

pub use converse::{Conversation, converse, listen};

use super::parse_some;
use crate::{
    args::{CommandArgs, ExecArgs, Global},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
    terminal,
};

/// What a terminal is where none can be asked.
pub const DEFAULT_SIZE: TerminalSize = TerminalSize { columns: 80, rows: 24 };

/// Runs a command in a VM.
///
/// # Errors
/// It could not be started, or its stream was cut.
pub async fn run(global: &Global, format: Format, args: ExecArgs) -> Result<Outcome, Failure> {
    let command = command(&args.command, args.name.as_deref(), args.detach)?;
    let client = Client::connect(global).await?;
    if args.detach {
        return detached(&client, format, args.vm, command).await;
    }
    let (vm, interactive) = (args.vm, args.command.interactive);
    let stream = open(&client, &vm, &command).await?;
    foreground(&client, stream, vm, &command, interactive).await
}

/// Opens the stream of a command, which is started by that.
///
/// # Errors
/// It could not be started.
pub async fn open(client: &Client, vm: &str, command: &Command) -> Result<ByteStream, Failure> {
    Ok(client.open(vm, SessionKind::Exec(command.clone())).await?)
}

/// Stays with a command to its end, with this process' streams, terminal and signals.
///
/// # Errors
/// Its stream was cut.
pub async fn foreground(
    client: &Client,
    stream: ByteStream,
    vm: String,
    command: &Command,
    interactive: bool,
) -> Result<Outcome, Failure> {
    let (job, tty) = (command.job.clone(), command.tty.is_some());
    let raw = tty && interactive && io::stdin().is_terminal();
    converse(client, stream, Conversation { vm, job, input: Some(interactive), tty, raw }).await
}

/// Starts a command that nobody is attached to, and prints its name.
async fn detached(client: &Client, format: Format, vm: String, command: Command) -> Result<Outcome, Failure> {
    let timeout_ms = contract::operation::default_wait_ms();
    let request = ExecRequest { vm, command, stdin: String::new(), timeout_ms };
    let reply = client.ask::<workspace::Exec>(&request).await?;
    let job = reply.job.ok_or_else(|| {
        ApiError::unavailable("the lab's workspace-service is older than this command and knows no detached ones")
    })?;
    match format {
        Format::Json => output::json(&serde_json::json!({ "job": job }))?,
        Format::Table => output::text(&format!("{job}\n"))?,
    }
    Ok(Outcome::Done)
}

/// What the arguments ask for.
///
/// # Errors
/// Something of it is malformed.
pub fn command(args: &CommandArgs, name: Option<&str>, detach: bool) -> Result<Command, ApiError> {
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
    let timeout = args.timeout.as_deref().map(milliseconds).transpose()?;
    let job: Option<JobName> = parse_some(name)?;
    Ok(Command {
        argv: args.command.clone(),
        env,
        cwd: args.workdir.clone(),
        user: args.user.clone(),
        tty: args.tty.then(|| terminal::size().unwrap_or(DEFAULT_SIZE)),
        timeout_ms: timeout,
        // Named here where it is detached, so that its name is known even where the reply is lost.
        job: job.or_else(|| detach.then(JobName::mint)),
        detach,
        open_stdin: detach && (args.interactive || args.tty),
    })
}

/// A time such as `30s` or `1h30m`, in milliseconds.
fn milliseconds(text: &str) -> Result<u64, ApiError> {
    let wrong =
        |why: String| ApiError::invalid_argument(format!("{text:?} is no time: {why}")).hint("write 30s, 10m or 2h");
    let time = humantime::parse_duration(text).map_err(|error| wrong(error.to_string()))?;
    u64::try_from(time.as_millis()).ok().filter(|limit| *limit > 0).ok_or_else(|| wrong("out of range".to_owned()))
}

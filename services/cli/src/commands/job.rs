//! `warren exec ls|attach|logs|kill` (`warren job …`): commands that run in a VM whoever started them.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use contract::{
    ApiError,
    job::{Attach, Job, JobName, KillRequest, ListRequest},
    workspace::{KillJob, ListJobs, SessionKind},
};

use super::{
    exec::{Conversation, DEFAULT_SIZE, converse, listen},
    parse,
};
use crate::{
    args::{Global, JobCommand},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
    terminal,
};

/// Runs a command about jobs.
///
/// # Errors
/// What the service answered, or the stream was cut.
pub async fn run(global: &Global, format: Format, command: JobCommand) -> Result<Outcome, Failure> {
    let client = Client::connect(global).await?;
    match command {
        JobCommand::Ls { vm } => {
            let list = client.ask::<ListJobs>(&ListRequest { vm }).await?;
            match format {
                Format::Json => output::json(&list)?,
                Format::Table => output::table(
                    &["JOB", "STATE", "EXIT", "USER", "ATTACHED", "STARTED", "ENDED", "COMMAND"],
                    list.jobs.iter().map(row).collect(),
                )?,
            }
            Ok(Outcome::Done)
        }
        JobCommand::Attach { vm, job, no_stdin } => attach(&client, vm, parse(&job)?, !no_stdin).await,
        JobCommand::Logs { vm, job, follow, tail } => {
            let attach = Attach { job: parse(&job)?, write: false, follow, tail_bytes: tail, size: None };
            let stream = client.open(&vm, SessionKind::Attach(attach)).await?;
            listen(stream, vm).await
        }
        JobCommand::Kill { vm, job, signal } => {
            let request = KillRequest { vm, job: parse(&job)?, signal };
            let told = client.ask::<KillJob>(&request).await?;
            match format {
                Format::Json => output::json(&told)?,
                Format::Table => output::text(&format!("{} was sent {}\n", told.name, request.signal))?,
            }
            Ok(Outcome::Done)
        }
    }
}

fn row(job: &Job) -> Vec<String> {
    let ago = |milliseconds: u64| format!("{} ago", output::duration(Duration::from_millis(milliseconds)));
    let name = if job.kept { job.name.to_string() } else { format!("({})", job.name) };
    vec![
        name,
        job.state.as_str().to_owned(),
        job.exit_code.map(|code| code.to_string()).unwrap_or_default(),
        job.user.clone(),
        job.attached.to_string(),
        ago(job.age_ms),
        job.ended_ms.map(ago).unwrap_or_default(),
        job.command.clone(),
    ]
}

async fn attach(client: &Client, vm: String, job: JobName, input: bool) -> Result<Outcome, Failure> {
    // Asked first, for whether it has a terminal.
    let list = client.ask::<ListJobs>(&ListRequest { vm: vm.clone() }).await?;
    let found = list.jobs.into_iter().find(|known| known.name == job).ok_or_else(|| {
        ApiError::not_found(format!("{vm} has no job {job}")).hint(format!("`warren exec ls {vm}` lists its jobs"))
    })?;
    let size = found.tty.then(|| terminal::size().unwrap_or(DEFAULT_SIZE));
    let attach = Attach { job: job.clone(), write: true, follow: true, tail_bytes: None, size };
    let stream = client.open(&vm, SessionKind::Attach(attach)).await?;
    let raw = found.tty && input && io::stdin().is_terminal();
    let conversation = Conversation { vm, job: Some(job), input: input.then_some(true), tty: found.tty, raw };
    converse(client, stream, conversation).await
}

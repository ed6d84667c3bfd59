//! Exec: a command for the host, whose streams are frames ([`contract::frame`]) on a stream of the channel.
//!
//! It is a job ([`crate::jobs`]) with the stream attached. A host that closes its sending half has sent all of its input; one that
//! drops the stream has gone, and unless the command is kept it is ended: SIGHUP, then SIGKILL.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

use contract::{
    ApiError,
    frame::{Exit, Frame},
    guest::Reply,
    job::Attach,
    workspace::Command,
};
use tokio::io::AsyncWriteExt;

use crate::{
    agent::{MuxStream, Shared},
    jobs::{self, Attachment, Refused},
    process::{Environment, Launch, LaunchError, Program, user},
};

/// What an end of file is on a terminal (^D).
pub const END_OF_TRANSMISSION: &[u8] = b"\x04";

/// Runs a command for the host, which is attached to it.
pub async fn serve(mut stream: MuxStream, command: &Command, shared: &Shared) {
    let started = if command.detach {
        Err(Refused::Request(ApiError::invalid_argument("`detach` has no stream: start it as a job")))
    } else {
        shared.jobs.start(command, &shared.settings.image.env)
    };
    match started {
        Ok(entry) => {
            let attachment = Attachment::new(&entry, true, true, None, true);
            if stream.write_reply(&Reply::Ok).await.is_ok() {
                jobs::serve(stream, attachment).await;
            }
        }
        Err(Refused::Request(error)) => {
            stream.write_reply(&Reply::Error(error)).await.unwrap_or_default();
            stream.shutdown().await.unwrap_or_default();
        }
        Err(Refused::Launch(error)) => {
            let exit = Exit { code: error.exit_code(), message: Some(crate::boot::chain(&error)) };
            if stream.write_reply(&Reply::Ok).await.is_ok() && jobs::send(&mut stream, &Frame::Exit(exit)).await.is_ok()
            {
                stream.shutdown().await.unwrap_or_default();
            }
        }
    }
}

/// Attaches the host to a command that was started before.
pub async fn attach(mut stream: MuxStream, wanted: &Attach, shared: &Shared) {
    let found = shared.jobs.find(&wanted.job).and_then(|entry| {
        if wanted.write && !entry.about.kept && entry.runs() {
            return Err(ApiError::failed_precondition(format!("the job {} is whoever's who runs it", wanted.job))
                .hint("listen to it with `warren exec logs --follow`"));
        }
        Ok(entry)
    });
    match found {
        Ok(entry) => {
            let attachment = Attachment::new(&entry, wanted.write, wanted.follow, wanted.tail_bytes, false);
            if let (true, Some(size), Some(control)) = (wanted.write, wanted.size, entry.control()) {
                control.resize(size);
            }
            if stream.write_reply(&Reply::Ok).await.is_ok() {
                jobs::serve(stream, attachment).await;
            }
        }
        Err(error) => {
            stream.write_reply(&Reply::Error(error)).await.unwrap_or_default();
            stream.shutdown().await.unwrap_or_default();
        }
    }
}

/// What to run. The inner error is the process' own failure to start.
///
/// # Errors
/// The request is refused.
pub fn prepare(command: &Command, image: &[String]) -> Result<Result<Launch, LaunchError>, ApiError> {
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

/// The exit code as a shell would give it.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

//! `warren.workspace.exec`.

use std::{sync::Arc, time::Duration};

use bus::{ByteStream, RequestContext};
use bytes::Bytes;
use contract::{
    ApiError, SessionId, deadline,
    frame::Exit,
    job::{JobAsk, JobName},
    workspace::{ExecReply, ExecRequest, SessionKind},
};
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::{
    App,
    conversation::Conversation,
    jobs,
    session::{self, OPENING},
};
use crate::domain::command;

/// How a command in hand ended, or why it was not waited for any longer.
enum Outcome {
    Exit(Exit),
    Lost(ApiError),
    OutOfTime,
    Stopped,
}

/// Runs a command in a VM and collects what it prints.
pub async fn handle(app: Arc<App>, _: RequestContext, request: ExecRequest) -> Result<ExecReply, ApiError> {
    check(&request)?;
    if request.command.detach {
        return detached(&app, request).await;
    }
    let Ok(_turn) = app.execs.try_acquire() else {
        return Err(ApiError::busy("this replica collects as many commands as it can hold")
            .hint("ask again in a moment, or run more replicas of workspace-service"));
    };
    let until = Instant::now() + Duration::from_millis(request.timeout_ms);
    let opening = until.min(Instant::now() + OPENING);
    let stream = timeout_at(opening, start(&app, &request)).await.map_err(|_| late(&request))??;
    let mut conversation = Conversation::new(stream);
    let outcome = tokio::select! {
        outcome = timeout_at(until, conversation.run(Bytes::from(request.stdin))) => match outcome {
            Ok(Ok(exit)) => Outcome::Exit(exit),
            Ok(Err(error)) => Outcome::Lost(error),
            Err(_) => Outcome::OutOfTime,
        },
        () = app.stop.cancelled() => Outcome::Stopped,
    };
    match outcome {
        Outcome::Exit(exit) => Ok(finished(conversation, &exit).await),
        Outcome::Lost(error) => Err(cut(conversation, "the command was given up", error).await),
        Outcome::OutOfTime => {
            let seen = conversation.kill().await;
            let fate = if seen { "was killed" } else { "its VM is told to kill it" };
            let error = ApiError::deadline_exceeded(format!(
                "the command did not end within {} ms and {fate}",
                request.timeout_ms
            ))
            .hint("give it more with `timeout_ms`, or run it on its own in the guest");
            Err(cut(conversation, "the command's time ran out", error).await)
        }
        Outcome::Stopped => {
            let error = ApiError::unavailable("the command was ended because this workspace-service is shutting down")
                .hint("look at what it has done, then run it again");
            Err(cut(conversation, "workspace-service is shutting down", error).await)
        }
    }
}

/// Starts a command that nobody is attached to.
async fn detached(app: &App, request: ExecRequest) -> Result<ExecReply, ApiError> {
    if !request.stdin.is_empty() {
        return Err(ApiError::invalid_argument("a detached command is given no standard input here")
            .hint("leave it open with `open_stdin`, and attach to it"));
    }
    let mut command = request.command;
    command.job.get_or_insert_with(JobName::mint);
    let job = jobs::one(jobs::ask(app, &request.vm, JobAsk::Start(Box::new(command))).await?)?;
    let (stdout, stderr) = Default::default();
    Ok(ExecReply { exit_code: 0, stdout, stderr, truncated: false, job: Some(job.name) })
}

fn check(request: &ExecRequest) -> Result<(), ApiError> {
    command::check(&request.command)?;
    if request.command.tty.is_some() && !request.command.detach {
        return Err(ApiError::invalid_argument("a collected command has no terminal: `tty` cannot be given here")
            .hint("`warren exec -t` gives a command a terminal"));
    }
    if !(1..=deadline::WAIT_MAX_MS).contains(&request.timeout_ms) {
        return Err(ApiError::invalid_argument(format!(
            "timeout_ms {} is not within 1 to {}",
            request.timeout_ms,
            deadline::WAIT_MAX_MS
        )));
    }
    Ok(())
}

/// Starts the command, with this process as the opener of its stream. Left early, the stream is reset, which ends what
/// may have been started.
async fn start(app: &App, request: &ExecRequest) -> Result<ByteStream, ApiError> {
    let kind = SessionKind::Exec(request.command.clone());
    let vm = session::find(&app.bus, &request.vm, &kind).await?;
    let session = SessionId::new();
    let stream = ByteStream::open(&app.bus, session).await?;
    session::connect(&app.bus, &vm, session, kind, false).await?;
    Ok(stream)
}

fn late(request: &ExecRequest) -> ApiError {
    let limit = u128::from(request.timeout_ms).min(OPENING.as_millis());
    not_again(ApiError::deadline_exceeded(format!("the VM's host did not take the command within {limit} ms")))
        .hint("should it have been started after all, it is ended; `warren vm show` tells how the VM is")
}

async fn finished(mut conversation: Conversation, exit: &Exit) -> ExecReply {
    if let Some(message) = &exit.message {
        conversation.stderr.push_line(message);
    }
    let (stdout, stderr) = (conversation.stdout.text(), conversation.stderr.text());
    conversation.close().await;
    ExecReply {
        exit_code: exit.code,
        truncated: stdout.truncated || stderr.truncated,
        stdout: stdout.text,
        stderr: stderr.text,
        job: None,
    }
}

/// Ends what is left of the command; the error with what it printed until then.
async fn cut(conversation: Conversation, reason: &str, error: ApiError) -> ApiError {
    let (stdout, stderr) = (conversation.stdout.text(), conversation.stderr.text());
    conversation.reset(reason).await;
    not_again(error).details(json!({
        "truncated": stdout.truncated || stderr.truncated,
        "stdout": stdout.text,
        "stderr": stderr.text,
    }))
}

/// The command has done a part of its work: nobody may repeat it without looking.
fn not_again(mut error: ApiError) -> ApiError {
    error.retryable = false;
    error
}

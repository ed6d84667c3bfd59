//! The **script** of a step, run as a job of the guest: it goes on whoever of Warren dies, and whoever adopts the step follows the same
//! job. While it is followed, its output waits for the log, so that nothing of it is lost.

use std::time::{Duration, Instant};

use contract::{
    ApiError, ErrorCode, deadline,
    frame::{Exit, Frame},
    image::{BUILD_DIR, WORK_DIR},
    job::{Attach, JobAsk, JobName, TIMED_OUT},
    workspace::{Command, SessionKind},
};
use futures::{FutureExt, future::BoxFuture};
use operations::{Context, StepError};
use serde_json::json;

use super::{
    guest::{self, Frames},
    log::{self, Log},
    step::StepOrder,
    vm::{self, Machine},
};
use crate::domain::build;

/// What the job is called in its VM.
const JOB: &str = "build";
/// Pause before a guest that was lost is sought again.
const PAUSE: Duration = Duration::from_millis(500);

/// Runs the script, or goes on with it, until it has ended well.
///
/// # Errors
/// It failed, the VM ended, or the step was cancelled.
pub async fn run(cx: &Context, machine: &Machine, order: &StepOrder) -> Result<(), StepError> {
    let mut log = Log::new(order.build, order.number);
    patiently(cx, machine, || start(cx, machine, order).boxed()).await?;
    runtime::fault::point("image.build_step/run/started");
    let exit = follow(cx, machine, &mut log).await?;
    if exit.code != 0 {
        return Err(failed(cx, order, &log, exit).await?);
    }
    let clear = ["rm", "-rf", "--", BUILD_DIR];
    patiently(cx, machine, || guest::run(cx.bus(), machine, &clear).boxed()).await
}

/// Starts the job, unless it was started before.
async fn start(cx: &Context, machine: &Machine, order: &StepOrder) -> Result<(), ApiError> {
    let name = job()?;
    let jobs = guest::jobs(cx.bus(), machine, JobAsk::List {}).await?;
    if jobs.iter().any(|job| job.name == name) {
        return Ok(());
    }
    if let Some(files) = &order.step.files {
        guest::put(cx.bus(), machine, files).await?;
    }
    let path = format!("{BUILD_DIR}/script");
    guest::put_own(cx.bus(), machine, &archive(&order.step.script, &path)?).await?;
    let command = Command {
        argv: build::command(&order.step.script, &path),
        env: order.step.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        cwd: Some(WORK_DIR.to_owned()),
        timeout_ms: Some(order.script_seconds * 1000),
        job: Some(name),
        detach: true,
        ..Command::default()
    };
    match guest::jobs(cx.bus(), machine, JobAsk::Start(Box::new(command))).await {
        // Its reply was lost, and this is a repeat.
        Err(error) if error.code == ErrorCode::AlreadyExists => Ok(()),
        started => started.map(drop),
    }
}

fn job() -> Result<JobName, ApiError> {
    JOB.parse().map_err(|error| ApiError::internal(format!("{JOB} is no name of a job: {error}")))
}

/// The script and the directory it runs in, as an archive.
fn archive(script: &str, path: &str) -> Result<Vec<u8>, ApiError> {
    let packed = || {
        let mut archive = tar::Builder::new(Vec::new());
        let header = |kind, mode, size| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(size);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header
        };
        let inside = |path: &str| path.trim_start_matches('/').to_owned();
        for directory in [BUILD_DIR, WORK_DIR] {
            let mut entry = header(tar::EntryType::Directory, 0o755, 0);
            archive.append_data(&mut entry, inside(directory), std::io::empty())?;
        }
        let mut entry = header(tar::EntryType::Regular, 0o755, script.len() as u64);
        archive.append_data(&mut entry, inside(path), script.as_bytes())?;
        archive.into_inner()
    };
    packed().map_err(|error: std::io::Error| ApiError::internal(format!("the script cannot be packed: {error}")))
}

/// Follows the job to its end; its output goes into the log.
async fn follow(cx: &Context, machine: &Machine, log: &mut Log) -> Result<Exit, StepError> {
    let mut heard = Instant::now();
    loop {
        cx.checkpoint()?;
        let position = log.resume(cx).await?;
        tracing::debug!(position, "the log goes on");
        let lost = match attach(cx, machine).await? {
            Ok(frames) => match read(cx, frames, log).await? {
                Ok(exit) => return Ok(exit),
                Err(lost) => {
                    heard = Instant::now();
                    lost
                }
            },
            Err(error) if error.code == ErrorCode::NotFound => {
                return Err(StepError::permanent(ApiError::failed_precondition(format!(
                    "the VM {} knows its script no more: it was started anew",
                    machine.name
                ))));
            }
            Err(error) => error,
        };
        tracing::info!(vm.name = %machine.name, error = %lost, "the script of a build is out of sight");
        vm::check_running(cx, machine).await?;
        if heard.elapsed() > deadline::BUILD_SILENCE {
            return Err(StepError::permanent(unseen(lost)));
        }
        pause(cx).await;
    }
}

fn unseen(last: ApiError) -> ApiError {
    ApiError::unavailable(format!(
        "the script was not seen for {} s and is given up: {}",
        deadline::BUILD_SILENCE.as_secs(),
        last.message
    ))
    .hint("`warren host ls` tells whether its host is up")
}

async fn attach(cx: &Context, machine: &Machine) -> Result<Result<Frames, ApiError>, StepError> {
    let job = job().map_err(StepError::permanent)?;
    // As the one who may write, the job's output waits for this reader.
    let attach = Attach { job, write: true, follow: true, tail_bytes: None, size: None };
    cx.unless_cancelled(Frames::open(cx.bus(), machine, SessionKind::Attach(attach))).await
}

/// Reads until the job has ended, or the stream was lost.
async fn read(cx: &Context, mut frames: Frames, log: &mut Log) -> Result<Result<Exit, ApiError>, StepError> {
    let mut at = 0;
    loop {
        cx.checkpoint()?;
        let wake = log.due().unwrap_or(deadline::POLL);
        let frame = tokio::select! {
            frame = frames.next() => frame,
            () = tokio::time::sleep(wake) => {
                log.flush(cx, false).await?;
                continue;
            }
            () = cx.cancelled() => continue,
        };
        match frame {
            Ok(Frame::Stdout(bytes) | Frame::Stderr(bytes)) => {
                log.output(cx, at, &bytes).await?;
                at += bytes.len() as u64;
            }
            Ok(Frame::Missed(bytes)) => at += bytes,
            Ok(Frame::Exit(exit)) => {
                log.flush(cx, true).await?;
                frames.close().await;
                return Ok(Ok(exit));
            }
            Ok(Frame::Left(reason)) => {
                log.flush(cx, true).await?;
                return Ok(Err(ApiError::aborted(reason)));
            }
            Ok(_) => return Ok(Err(ApiError::internal("the guest sent a frame only clients send"))),
            Err(error) => {
                log.flush(cx, true).await?;
                return Ok(Err(error));
            }
        }
    }
}

async fn failed(cx: &Context, order: &StepOrder, log: &Log, exit: Exit) -> Result<StepError, StepError> {
    let tail = log.tail(cx).await?;
    let timed_out = exit.code == TIMED_OUT && exit.message.is_some();
    let why = match (timed_out, exit.message) {
        (true, _) => format!("the script did not end within {} s and was terminated", order.script_seconds),
        (false, Some(message)) => format!("the script ended with exit code {}: {message}", exit.code),
        (false, None) => format!("the script ended with exit code {}", exit.code),
    };
    log.note(cx, &log::failed(order, &why)).await?;
    let last = tail.iter().rev().find(|line| !line.trim().is_empty());
    let message = last.map_or_else(|| why.clone(), |line| format!("{why}; it said last: {line}"));
    let error = match timed_out {
        true => ApiError::new(ErrorCode::DeadlineExceeded, message),
        false => ApiError::failed_precondition(message),
    };
    Ok(StepError::permanent(
        error
            .hint(format!("`warren image log {}` shows all it printed", order.build))
            .details(json!({ "exit_code": exit.code, "tail": tail, "build": order.build })),
    ))
}

/// Does something in the guest, again while its host is out of reach, as long as the VM runs.
async fn patiently<'a>(
    cx: &Context,
    machine: &Machine,
    act: impl Fn() -> BoxFuture<'a, Result<(), ApiError>> + Send + Sync,
) -> Result<(), StepError> {
    let mut reached = Instant::now();
    loop {
        cx.checkpoint()?;
        let begun = Instant::now();
        match cx.unless_cancelled(act()).await? {
            Ok(()) => return Ok(()),
            Err(error) if !error.retryable && error.code != ErrorCode::FailedPrecondition => {
                return Err(StepError::permanent(error));
            }
            Err(error) => {
                tracing::info!(vm.name = %machine.name, %error, "a step's work in its VM will be tried again");
                vm::check_running(cx, machine).await?;
                if !error.retryable {
                    return Err(StepError::permanent(error));
                }
                // What took long was under way, and not out of reach.
                if begun.elapsed() > deadline::AGENT {
                    reached = Instant::now();
                }
                if reached.elapsed() > deadline::BUILD_SILENCE {
                    return Err(StepError::permanent(error));
                }
            }
        }
        pause(cx).await;
    }
}

async fn pause(cx: &Context) {
    tokio::select! {
        () = tokio::time::sleep(PAUSE) => {}
        () = cx.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_and_its_directory_are_packed() {
        let bytes = archive("echo", "/.warren-build/script").unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap())
        });
        let wanted = [(".warren-build", 0o755), (".warren-build/work", 0o755), (".warren-build/script", 0o755)];
        assert_eq!(entries.collect::<Vec<_>>(), wanted.map(|(path, mode)| (path.to_owned(), mode)));
    }
}

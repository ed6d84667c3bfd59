//! `warren.workspace.jobs`, `warren.workspace.job_kill`, and the start of a detached command.

use std::sync::Arc;

use bus::{CallOptions, RequestContext};
use contract::{
    ApiError, ErrorCode,
    agent::GuestJobs,
    job::{AskRequest, Job, JobAsk, Jobs, KillRequest, ListRequest},
    vm::{self, VmRef},
};

use super::{
    App,
    session::{LOOKUP, OPENING},
};
use crate::domain::{access, signal};

/// Lists the jobs of a VM.
pub async fn list(app: Arc<App>, _: RequestContext, request: ListRequest) -> Result<Jobs, ApiError> {
    ask(&app, &request.vm, JobAsk::List {}).await
}

/// Signals a job.
pub async fn kill(app: Arc<App>, _: RequestContext, request: KillRequest) -> Result<Job, ApiError> {
    let number = signal::number(&request.signal)?;
    one(ask(&app, &request.vm, JobAsk::Signal { job: request.job, number }).await?)
}

/// The job of a request that is about one.
///
/// # Errors
/// `internal`: the guest said nothing of it.
pub fn one(jobs: Jobs) -> Result<Job, ApiError> {
    jobs.jobs.into_iter().next().ok_or_else(|| ApiError::internal("the guest did not say which job it is"))
}

/// Has a VM's host ask its guest.
///
/// # Errors
/// `not_found`; `failed_precondition` when it is not running; or what the host or the guest answered.
pub async fn ask(app: &App, name_or_id: &str, ask: JobAsk) -> Result<Jobs, ApiError> {
    let asking = async {
        let options = CallOptions { timeout: Some(LOOKUP), ..CallOptions::default() };
        let vm = app.bus.call_with::<vm::Get>(&VmRef { vm: name_or_id.to_owned() }, options).await?;
        access::running(&vm)?;
        let answer = app.bus.command::<GuestJobs>(&vm.host, &AskRequest { vm: vm.id, ask }).await;
        answer.map_err(|error| match error.code {
            ErrorCode::Unavailable if error.hint.is_none() => error.hint(format!(
                "VM {} is on {}; `warren host ls` tells whether that host is up, and of this version",
                vm.name, vm.host
            )),
            _ => error,
        })
    };
    tokio::time::timeout(OPENING, asking).await.unwrap_or_else(|_| {
        Err(ApiError::deadline_exceeded(format!("the VM did not answer within {} s", OPENING.as_secs()))
            .hint("`warren exec ls` tells what runs in it"))
    })
}

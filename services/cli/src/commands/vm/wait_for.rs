//! `warren vm wait`: until a VM is where somebody wants it, whoever brings it there.

use std::time::{Duration, Instant};

use contract::{
    ApiError, ErrorCode,
    vm::{Get, Vm, VmRef, VmState},
};

use super::create::seconds;
use crate::{
    args::Global,
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
};

/// How often the VM is looked at.
const POLL: Duration = Duration::from_millis(250);

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goal {
    Running,
    Stopped,
    Deleted,
}

impl Goal {
    fn parse(text: &str) -> Result<Self, ApiError> {
        match text {
            // A row says `running` only once the guest was ready.
            "running" | "ready" => Ok(Self::Running),
            "stopped" => Ok(Self::Stopped),
            "deleted" => Ok(Self::Deleted),
            other => Err(ApiError::invalid_argument(format!("{other:?} cannot be waited for"))
                .hint("wait for running, ready, stopped or deleted")),
        }
    }

    /// Whether it is reached, or why it will not be.
    fn reached(self, vm: Option<&Vm>) -> Result<bool, ApiError> {
        match (self, vm) {
            (Self::Deleted, vm) => Ok(vm.is_none()),
            (_, None) => Err(ApiError::not_found("the VM is gone")),
            (Self::Running, Some(vm)) if vm.state == VmState::Failed && vm.restart_at.is_none() && idle(vm) => {
                let why = vm.reason.clone().unwrap_or_default();
                Err(ApiError::failed_precondition(format!("VM {} is failed: {why}", vm.name))
                    .hint(format!("`warren vm logs {}` shows its console", vm.name)))
            }
            (Self::Running, Some(vm)) => Ok(vm.state == VmState::Running),
            (Self::Stopped, Some(vm)) => Ok(matches!(vm.state, VmState::Stopped | VmState::Failed)),
        }
    }
}

/// Whether nothing is under way with it.
fn idle(vm: &Vm) -> bool {
    vm.operation.is_none() && vm.queued.is_empty()
}

/// Waits.
///
/// # Errors
/// `deadline_exceeded`; `failed_precondition` for a VM that failed; `not_found` for one that is gone.
pub async fn run(global: &Global, format: Format, vm: String, what: &str, timeout: &str) -> Result<Outcome, Failure> {
    let goal = Goal::parse(what)?;
    let give_up = Instant::now() + Duration::from_secs(seconds(timeout)?);
    let client = Client::connect(global).await?;
    let mut id: Option<String> = None;
    loop {
        // By id once it is known, so that another VM of the same name is not taken for it.
        let asked = VmRef { vm: id.clone().unwrap_or_else(|| vm.clone()) };
        let seen = match client.ask::<Get>(&asked).await {
            Ok(seen) => Some(seen),
            Err(error) if error.code == ErrorCode::NotFound && (id.is_some() || goal == Goal::Deleted) => None,
            Err(error) if error.code == ErrorCode::NotFound => return Err(error.into()),
            Err(error) if error.retryable && Instant::now() < give_up => {
                tokio::time::sleep(POLL).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        id = id.or_else(|| seen.as_ref().map(|vm| vm.id.to_string()));
        if goal.reached(seen.as_ref())? {
            match (format, &seen) {
                (Format::Json, Some(vm)) => output::json(vm)?,
                (Format::Json, None) => output::json(&serde_json::json!({ "vm": vm, "state": "deleted" }))?,
                (Format::Table, _) => output::text(&format!("{} is {what}\n", output::clean(&vm)))?,
            }
            return Ok(Outcome::Done);
        }
        if Instant::now() >= give_up {
            let state = seen.map_or("gone", |vm| vm.state.as_str());
            let message = format!("VM {vm} is {state} and was not {what} within {timeout}");
            return Err(ApiError::deadline_exceeded(message).into());
        }
        tokio::time::sleep(POLL).await;
    }
}

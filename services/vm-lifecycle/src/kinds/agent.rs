//! Commands to the host a VM is on: idempotent long-polls, left at once when a cancel comes.

use std::time::Duration;

use contract::{
    AgentVerb, ApiError, ErrorCode, HostId, VmId, VmName,
    agent::{
        AdjustRequest, Adjusted, HostVmState, ProvisionRequest, Provisioned, StopRequest, VmAdjust, VmAwaitReady,
        VmBoot, VmCommand, VmObservation, VmPause, VmProvision, VmRemove, VmResume, VmSpec, VmStop,
    },
    deadline,
    guest::GuestFacts,
};
use operations::{Context, StepError};
use serde_json::json;
use store::StoreError;

use super::HOST_GONE;
use crate::domain::plan::Wanted;

/// The VM a command is about.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Its host.
    pub host: &'a HostId,
    /// Its id.
    pub vm: VmId,
    /// Its name, for messages.
    pub name: &'a VmName,
}

/// Sends a command; a host that is gone for long makes it fail for good instead of being asked on.
async fn command<A: AgentVerb>(cx: &Context, host: &HostId, request: &A::Request) -> Result<A::Reply, StepError> {
    let reply = tokio::select! {
        reply = cx.bus().command::<A>(host, request) => reply,
        () = cx.cancelled() => {
            cx.checkpoint()?;
            Err(ApiError::unavailable("the command was left"))
        }
    };
    match reply {
        Ok(reply) => Ok(reply),
        Err(error) if error.code == ErrorCode::Unavailable && host_gone(cx, host).await? => {
            let error = ApiError::unavailable(format!(
                "host {host} has been silent for more than {} s, so this cannot be done now",
                HOST_GONE.as_secs()
            ));
            Err(StepError::permanent(error.hint(format!("start the host-agent of {host} and ask again"))))
        }
        Err(error) => Err(error.into()),
    }
}

async fn host_gone(cx: &Context, host: &HostId) -> Result<bool, StoreError> {
    let client = cx.store().client().await?;
    let statement = client
        .prepare_cached("select last_seen < clock_timestamp() - make_interval(secs => $2) from vm.host where id = $1")
        .await?;
    let row = client.query_opt(&statement, &[&host.as_str(), &HOST_GONE.as_secs_f64()]).await?;
    Ok(row.is_none_or(|row| row.get(0)))
}

/// Makes the VM's directory, disk and tap.
pub async fn provision(cx: &Context, host: &HostId, spec: VmSpec) -> Result<Provisioned, StepError> {
    command::<VmProvision>(cx, host, &ProvisionRequest { fence: cx.fence(), spec }).await
}

/// Starts the VM's VMM.
pub async fn boot(cx: &Context, target: Target<'_>) -> Result<(), StepError> {
    let request = VmCommand { fence: cx.fence(), vm: target.vm, wait_ms: 0 };
    let seen = command::<VmBoot>(cx, target.host, &request).await?;
    match seen.state {
        HostVmState::Booting | HostVmState::Ready | HostVmState::Paused => Ok(()),
        HostVmState::Absent | HostVmState::Off | HostVmState::Failed => Err(boot_failed(target, &seen)),
    }
}

/// Waits until the VM's guest is ready.
pub async fn await_ready(cx: &Context, target: Target<'_>) -> Result<GuestFacts, StepError> {
    loop {
        cx.checkpoint()?;
        let request = VmCommand { fence: cx.fence(), vm: target.vm, wait_ms: deadline::AGENT_POLL_MS };
        let seen = command::<VmAwaitReady>(cx, target.host, &request).await?;
        match seen.state {
            HostVmState::Ready | HostVmState::Paused => return Ok(seen.guest.unwrap_or_default()),
            // The agent holds the reply; a pause keeps one that does not from being asked without end.
            HostVmState::Booting => tokio::time::sleep(POLL_PAUSE).await,
            HostVmState::Absent | HostVmState::Off | HostVmState::Failed => return Err(boot_failed(target, &seen)),
        }
    }
}

/// Pause between two long-polls.
const POLL_PAUSE: Duration = Duration::from_millis(10);

/// Why a boot failed, with the console's end: it stays with the operation when the VM is gone.
fn boot_failed(target: Target<'_>, seen: &VmObservation) -> StepError {
    let why = match (&seen.reason, seen.state) {
        (Some(reason), _) => reason.clone(),
        (None, HostVmState::Off) => "its guest powered off before it was ready".to_owned(),
        (None, HostVmState::Absent) => "its directory is gone from its host".to_owned(),
        (None, _) => "its VMM ended before the guest was ready".to_owned(),
    };
    let error = ApiError::failed_precondition(format!("VM {} did not boot on {}: {why}", target.name, target.host))
        .hint("`details.console_tail` holds the console's last lines, where the guest got that far")
        .details(json!({ "host": target.host, "vm_id": target.vm, "console_tail": seen.console_tail }));
    StepError::permanent(error)
}

/// Stops the VM's VMM, giving its guest `grace` to power itself off.
pub async fn stop(cx: &Context, target: Target<'_>, grace: Duration) -> Result<(), StepError> {
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    loop {
        cx.checkpoint()?;
        let request = StopRequest { fence: cx.fence(), vm: target.vm, grace_ms, wait_ms: deadline::AGENT_POLL_MS };
        let seen = command::<VmStop>(cx, target.host, &request).await?;
        match seen.state {
            HostVmState::Off | HostVmState::Failed | HostVmState::Absent => return Ok(()),
            HostVmState::Booting | HostVmState::Ready | HostVmState::Paused => tokio::time::sleep(POLL_PAUSE).await,
        }
    }
}

/// Tells the host what the VM is to be.
pub async fn adjust(cx: &Context, target: Target<'_>, wanted: &Wanted) -> Result<Adjusted, StepError> {
    let request = AdjustRequest {
        fence: cx.fence(),
        vm: target.vm,
        name: wanted.name.clone(),
        cpus: wanted.cpus,
        memory: wanted.memory,
        disk: wanted.disk,
        ports: Some(wanted.ports.clone()),
    };
    command::<VmAdjust>(cx, target.host, &request).await
}

/// Pauses the VM's guest, or resumes it.
pub async fn pause(cx: &Context, target: Target<'_>, paused: bool) -> Result<(), StepError> {
    let request = VmCommand { fence: cx.fence(), vm: target.vm, wait_ms: 0 };
    if paused {
        command::<VmPause>(cx, target.host, &request).await.map(drop)
    } else {
        command::<VmResume>(cx, target.host, &request).await.map(drop)
    }
}

/// Removes all the host has of the VM; nothing there is fine.
pub async fn remove(cx: &Context, host: &HostId, vm: VmId) -> Result<(), StepError> {
    let request = VmCommand { fence: cx.fence(), vm, wait_ms: deadline::AGENT_POLL_MS };
    command::<VmRemove>(cx, host, &request).await.map(drop)
}

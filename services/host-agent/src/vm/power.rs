//! Pausing, resuming and ending a running VM.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use contract::{ApiError, agent::Fence, guest::Request};
use nix::sys::signal::Signal;

use super::owner::Owner;
use crate::{
    guest::Guest,
    vmm::{process::Process, qmp},
};

/// How long a VMM gets after SIGTERM: it closes its disks and ends.
const TERMINATE: Duration = Duration::from_secs(3);

impl Owner {
    /// Pauses or resumes the guest.
    pub(super) async fn pause(&mut self, fence: Fence, paused: bool) -> Result<(), ApiError> {
        self.admit(fence)?;
        let vmm = self.handles.as_mut().and_then(|handles| handles.vmm.as_mut());
        let (Some(running), Some(vmm)) = (&self.running, vmm) else {
            return Err(ApiError::failed_precondition(format!("the VM {} does not run", self.vm)));
        };
        let guest = running.guest.clone();
        let was = std::mem::replace(&mut vmm.paused, paused);
        self.save()?;
        runtime::fault::point("agent/vm.pause/recorded");
        if let Err(error) = qmp::set_paused(&self.deps.dirs.dir(self.vm), paused).await {
            if let Some(vmm) = self.handles.as_mut().and_then(|handles| handles.vmm.as_mut()) {
                vmm.paused = was;
            }
            self.save()?;
            return Err(ApiError::unavailable(format!("the VMM does not answer: {error}"))
                .hint("a VMM that an older host-agent started cannot be paused: restart the VM"));
        }
        if !paused {
            // Its clock stood still.
            tokio::spawn(set_clock(guest));
        }
        Ok(())
    }

    /// Makes an adopted guest as paused as its handles say: the agent before may have died in between.
    pub(super) fn assert_paused(&self) {
        let Some(vmm) = self.handles.as_ref().and_then(|handles| handles.vmm.as_ref()) else { return };
        let (dir, paused) = (self.deps.dirs.dir(self.vm), vmm.paused);
        tokio::spawn(async move {
            if let Err(error) = qmp::set_paused(&dir, paused).await {
                tracing::warn!(%error, dir = %dir.display(), paused, "an adopted VMM's monitor does not answer");
            }
        });
    }

    /// Begins to end the VMM: politely within `grace`, which a later call may shorten.
    pub(super) fn stop(&mut self, fence: Fence, grace: Duration) -> Result<(), ApiError> {
        self.admit(fence)?;
        if self.running.is_some() {
            self.with_site(|capabilities, site| capabilities.before_stop(site));
        }
        let Some(running) = &mut self.running else { return Ok(()) };
        if let Some(vmm) = self.handles.as_mut().and_then(|handles| handles.vmm.as_mut()) {
            vmm.stop_wanted = true;
        }
        if running.stopper.is_none() || grace.is_zero() {
            if let Some(earlier) = running.stopper.take() {
                earlier.abort();
            }
            let (process, guest) = (running.process.clone(), running.guest.clone());
            // A guest that is paused cannot power itself off.
            let vmm = self.handles.as_mut().and_then(|handles| handles.vmm.as_mut());
            let paused = vmm.is_some_and(|vmm| std::mem::take(&mut vmm.paused));
            let wake = paused.then(|| self.deps.dirs.dir(self.vm));
            running.stopper = Some(tokio::spawn(power_off(process, guest, grace, wake)).abort_handle());
        }
        self.save()
    }
}

/// Sets the guest's clock to the host's.
async fn set_clock(guest: Guest) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX);
    if let Err(error) = guest.ask(&Request::Clock(now)).await {
        tracing::warn!(%error, "a resumed guest's clock is behind");
    }
}

/// Asks the guest to power off, then ends the VMM, each with its time.
async fn power_off(process: Arc<Process>, guest: Guest, grace: Duration, wake: Option<PathBuf>) {
    if !grace.is_zero() {
        if let Some(dir) = wake
            && let Err(error) = qmp::set_paused(&dir, false).await
        {
            tracing::warn!(%error, "a paused guest cannot be asked to power off");
        }
        let asked = tokio::time::timeout(grace, async {
            match guest.ask(&Request::PowerOff).await {
                // The stream is kept open until the guest is off.
                Ok(_stream) => std::future::pending::<()>().await,
                Err(error) => tracing::info!(%error, "the guest cannot be asked to power off"),
            }
        });
        drop(asked.await);
    }
    process.signal(Signal::SIGTERM);
    tokio::time::sleep(TERMINATE).await;
    process.signal(Signal::SIGKILL);
}

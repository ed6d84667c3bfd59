//! The task that owns one VM: it alone changes the VM's handles and kernel objects.
//!
//! ```text
//!            provision           boot              guest is ready        pause
//!   Absent ────────────► Off ────────────► Booting ───────────────► Ready ◄─────► Paused
//!     ▲                   ▲ ▲                 │ not ready in time,     │
//!     │      remove       │ └── stop, guest's ├──── ended with an error│
//!     └── from anywhere   │     power-off     ▼                        │
//!                         └──────────────── Failed ◄───────────────────┘
//! ```

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use contract::{
    ApiError, VmId,
    agent::{Fence, HostVmState, VmObservation},
    deadline,
    guest::GuestFacts,
};
use nix::sys::signal::Signal;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
};

use super::{Command, Deps, Handle, QUEUE, ending};
use crate::{
    capability::{Capabilities, Site},
    files::chain,
    guest::Guest,
    handles::{Ended, Handles, VmmHandle},
    usage::Subject,
    vmm::{
        names,
        process::{Exit, Process},
    },
};

/// What happens to a VM by itself. The number is the boot it belongs to, so that a late one changes nothing.
pub(super) enum Event {
    Ended(u64, Exit),
    Ready(u64, GuestFacts),
    NotReady(u64),
}

/// A VMM that runs.
pub(super) struct Running {
    pub(super) process: Arc<Process>,
    pub(super) guest: Guest,
    pub(super) boot: u64,
    pub(super) readiness: AbortHandle,
    pub(super) stopper: Option<AbortHandle>,
    /// Why it is being ended although nobody asked for a stop.
    pub(super) condemned: Option<String>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.readiness.abort();
        if let Some(stopper) = &self.stopper {
            stopper.abort();
        }
    }
}

/// The owner of one VM.
pub(super) struct Owner {
    pub(super) vm: VmId,
    pub(super) deps: Arc<Deps>,
    pub(super) handles: Option<Handles>,
    /// Why its handles are not known although they are there: nothing is done to such a VM but removing it.
    damaged: Option<String>,
    pub(super) running: Option<Running>,
    pub(super) events: (mpsc::UnboundedSender<Event>, mpsc::UnboundedReceiver<Event>),
    observed: watch::Sender<VmObservation>,
    pub(super) guest: watch::Sender<Option<Guest>>,
    measured: watch::Sender<Option<Subject>>,
}

/// Unix time in milliseconds.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn internal(what: &str, error: impl std::fmt::Display) -> ApiError {
    ApiError::internal(format!("{what}: {error}"))
}

impl Owner {
    /// The owner of a VM that is not here.
    pub(super) fn absent(vm: VmId, deps: Arc<Deps>) -> Self {
        let observation = VmObservation {
            vm,
            state: HostVmState::Absent,
            epoch: 0,
            pid: None,
            guest: None,
            reason: None,
            console_tail: None,
        };
        Self {
            vm,
            deps,
            handles: None,
            damaged: None,
            running: None,
            events: mpsc::unbounded_channel(),
            observed: watch::Sender::new(observation),
            guest: watch::Sender::new(None),
            measured: watch::Sender::new(None),
        }
    }

    /// The owner of a VM with these handles, whose VMM may still run.
    pub(super) fn found(vm: VmId, deps: Arc<Deps>, handles: Handles, process: Option<Process>) -> Self {
        let mut owner = Self::absent(vm, deps);
        let boot = handles.vmm.as_ref().map(|vmm| vmm.spawned_at_ms);
        let ready = handles.vmm.as_ref().is_some_and(|vmm| vmm.guest.is_some());
        owner.handles = Some(handles);
        match (process, boot) {
            (Some(process), Some(boot)) => {
                owner.watch(process, boot, ready);
                owner.assert_paused();
            }
            (None, Some(_)) => {
                let vmm = owner.handles.as_ref().and_then(|handles| handles.vmm.as_ref());
                let restarted = vmm.is_some_and(VmmHandle::is_of_another_boot);
                owner.ended(if restarted { Exit::HostRestarted } else { Exit::Unknown });
            }
            (_, None) => {}
        }
        owner.show();
        owner
    }

    /// The owner of a VM whose handles cannot be read; its VMM, if it runs, runs on.
    pub(super) fn damaged(vm: VmId, deps: Arc<Deps>, why: String, process: Option<Process>) -> Self {
        let mut owner = Self::absent(vm, deps);
        owner.damaged = Some(why);
        if let Some(process) = process {
            owner.watch(process, now_ms(), true);
        }
        owner.show();
        owner
    }

    /// Starts the task.
    pub(super) fn start(self) -> Handle {
        let (commands, queue) = mpsc::channel(QUEUE);
        let handle = Handle {
            commands,
            observed: self.observed.subscribe(),
            guest: self.guest.subscribe(),
            measured: self.measured.subscribe(),
        };
        tokio::spawn(self.run(queue));
        handle
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        loop {
            tokio::select! {
                command = queue.recv() => match command {
                    Some(Command::Remove(fence, answer)) => {
                        let outcome = self.remove(fence, &mut queue).await;
                        let gone = outcome.is_ok();
                        reply(answer, outcome);
                        if gone {
                            return;
                        }
                    }
                    Some(command) => self.command(command).await,
                    None => return,
                },
                event = self.events.1.recv() => {
                    if let Some(event) = event {
                        self.event(event);
                    }
                }
            }
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Provision(request, answer) => {
                let outcome = self.provision(*request).await;
                self.show();
                reply(answer, outcome);
            }
            Command::Boot(fence, answer) => {
                let outcome = self.boot(fence).await;
                self.show();
                reply(answer, outcome);
            }
            Command::Adjust(request, answer) => reply(answer, self.adjust(*request).await),
            Command::Pause(fence, paused, answer) => {
                let outcome = self.pause(fence, paused).await;
                self.show();
                reply(answer, outcome);
            }
            Command::Admit(fence, answer) => reply(answer, self.admit(fence)),
            Command::Stop(fence, grace, answer) => {
                let outcome = self.stop(fence, grace);
                self.show();
                reply(answer, outcome);
            }
            Command::Copy(copying, answer) => reply(answer, self.copy_disk(copying).await),
            // Handled by `run`, as the task ends with it.
            Command::Remove(_, answer) => drop(answer),
        }
    }

    /// Refuses a command of an older claim and remembers the newest epoch before anything is done for it.
    pub(super) fn admit(&mut self, fence: Fence) -> Result<(), ApiError> {
        if let Some(why) = &self.damaged {
            return Err(ApiError::failed_precondition(format!("the VM {} is damaged on its host: {why}", self.vm))
                .hint("mend that file and restart the host-agent, or delete the VM"));
        }
        self.fence(fence)
    }

    fn fence(&mut self, fence: Fence) -> Result<(), ApiError> {
        let buried = if self.handles.is_none() { self.deps.dirs.buried(self.vm) } else { None };
        let known = self.handles.as_ref().map(|handles| handles.epoch).or(buried).unwrap_or(0);
        if fence.epoch < known {
            return Err(ApiError::aborted(format!(
                "stale epoch {} for the VM {}: {known} was seen already",
                fence.epoch, self.vm
            )));
        }
        if let Some(handles) = &mut self.handles
            && fence.epoch > handles.epoch
        {
            (handles.epoch, handles.operation) = (fence.epoch, fence.operation);
            self.save()?;
        }
        Ok(())
    }

    /// Gives the capabilities and what they need to know, where the VM's handles are known.
    pub(super) fn with_site(&self, tell: impl FnOnce(&Capabilities, Site<'_>)) {
        if let Some(handles) = &self.handles {
            let dir = self.deps.dirs.dir(self.vm);
            tell(&self.deps.capabilities, Site { spec: &handles.spec, dir: &dir, tap: &handles.tap });
        }
    }

    pub(super) fn save(&self) -> Result<(), ApiError> {
        let Some(handles) = &self.handles else { return Ok(()) };
        self.deps.dirs.save(handles).map_err(|error| match error.kind() {
            std::io::ErrorKind::StorageFull => ApiError::resource_exhausted("the host's disk is full"),
            _ => internal("the VM's handles cannot be saved", error),
        })
    }

    fn event(&mut self, event: Event) {
        let current = self.running.as_ref().map(|running| running.boot);
        match event {
            Event::Ended(boot, exit) if current == Some(boot) => self.ended(exit),
            Event::Ready(boot, facts) if current == Some(boot) => {
                if let Some(vmm) = self.handles.as_mut().and_then(|handles| handles.vmm.as_mut()) {
                    vmm.guest = Some(facts);
                }
                self.save_or_log();
            }
            Event::NotReady(boot) if current == Some(boot) => {
                if let Some(running) = &mut self.running {
                    let bound = deadline::BOOT.as_secs();
                    running.condemned = Some(format!("the guest was not ready within {bound} s"));
                    running.process.signal(Signal::SIGKILL);
                }
                return;
            }
            _ => return,
        }
        self.show();
        drop(self.deps.reports.send(self.observed.borrow().clone()));
    }

    /// Records how the VMM ended.
    fn ended(&mut self, exit: Exit) {
        let condemned = self.running.take().and_then(|mut running| running.condemned.take());
        self.guest.send_replace(None);
        self.with_site(|capabilities, site| capabilities.after_stop(site));
        let tail = ending::console_tail(&self.deps.dirs.dir(self.vm).join(names::CONSOLE));
        let Some(handles) = &mut self.handles else { return };
        let Some(vmm) = handles.vmm.take() else { return };
        let ended = match condemned {
            Some(reason) => Ended { clean: false, reason, console_tail: Some(tail) },
            None => ending::judge(exit, vmm.stop_wanted, vmm.guest.is_some(), tail),
        };
        tracing::info!(vm.id = %self.vm, clean = ended.clean, reason = %ended.reason, "the VMM ended");
        handles.ended = Some(ended);
        self.save_or_log();
    }

    fn save_or_log(&self) {
        if let Err(error) = self.save() {
            // What was not saved is found again from the process table.
            tracing::error!(vm.id = %self.vm, %error, "a VM's handles are behind");
        }
    }

    /// Ends the VMM and removes everything; the tombstone keeps a late command from bringing it back.
    async fn remove(&mut self, fence: Fence, queue: &mut mpsc::Receiver<Command>) -> Result<(), ApiError> {
        self.fence(fence)?;
        self.deps
            .dirs
            .bury(self.vm, fence.epoch)
            .map_err(|error| internal("the tombstone cannot be written", error))?;
        if let Some(vmm) = self.handles.as_mut().and_then(|handles| handles.vmm.as_mut()) {
            vmm.stop_wanted = true;
        }
        while let Some(running) = &self.running {
            running.process.signal(Signal::SIGKILL);
            match self.events.1.recv().await {
                Some(event) => self.event(event),
                None => break,
            }
        }
        let (deps, vm, handles) = (self.deps.clone(), self.vm, self.handles.clone());
        let removed = tokio::task::spawn_blocking(move || {
            let dir = deps.dirs.dir(vm);
            match &handles {
                Some(known) => deps.capabilities.cleanup(Site { spec: &known.spec, dir: &dir, tap: &known.tap })?,
                // Handles that are damaged do not tell the tap; the guard does.
                None => {
                    deps.lab.remove_taps_of(vm).map_err(|error| internal("the tap cannot be removed", chain(&error)))?
                }
            }
            if let Some(cgroups) = &deps.cgroups {
                cgroups.remove(vm).map_err(|error| internal("the VM's control group cannot be removed", error))?;
            }
            runtime::fault::point("agent/vm.remove/tap");
            deps.dirs.remove(vm).map_err(|error| internal("the VM's directory cannot be removed", error))
        });
        removed.await.map_err(|error| internal("the removal failed", error)).flatten()?;
        (self.handles, self.damaged) = (None, None);
        queue.close();
        self.show();
        Ok(())
    }

    /// Shows what is true now.
    pub(super) fn show(&self) {
        let pid = self.running.as_ref().map(|running| running.process.identity.pid);
        if let Some(why) = &self.damaged {
            self.observed.send_modify(|seen| {
                (seen.state, seen.pid, seen.reason) = (HostVmState::Failed, pid, Some(why.clone()));
            });
            return;
        }
        self.measured.send_replace(self.handles.as_ref().map(|handles| Subject::new(&self.deps, handles, pid)));
        let Some(handles) = &self.handles else {
            self.observed.send_modify(|seen| (seen.state, seen.pid, seen.guest) = (HostVmState::Absent, None, None));
            return;
        };
        let guest = handles.vmm.as_ref().and_then(|vmm| vmm.guest.clone());
        let ended = handles.ended.as_ref();
        let paused = handles.vmm.as_ref().is_some_and(|vmm| vmm.paused);
        let state = match (&self.running, &guest, ended) {
            (Some(_), Some(_), _) if paused => HostVmState::Paused,
            (Some(_), Some(_), _) => HostVmState::Ready,
            (Some(_), None, _) => HostVmState::Booting,
            (None, _, Some(Ended { clean: false, .. })) => HostVmState::Failed,
            (None, ..) => HostVmState::Off,
        };
        let observation = VmObservation {
            vm: self.vm,
            state,
            epoch: handles.epoch,
            pid,
            guest,
            reason: ended.map(|ended| ended.reason.clone()),
            console_tail: ended.and_then(|ended| ended.console_tail.clone()),
        };
        self.observed.send_replace(observation);
    }
}

fn reply<T>(answer: oneshot::Sender<Result<T, ApiError>>, outcome: Result<T, ApiError>) {
    if answer.send(outcome).is_err() {
        tracing::debug!("nobody waits for a command's outcome any more");
    }
}

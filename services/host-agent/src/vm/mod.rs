//! VMs on this host. One task owns each ([`owner`]); everybody else sends it messages and watches what it
//! shows.

mod adjust;
mod adoption;
mod boot;
mod checks;
pub mod console;
mod ending;
mod owner;
pub mod postmortem;
mod power;
mod provision;
pub mod reconcile;
mod snapshot;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use contract::{
    ApiError, VmId,
    agent::{
        AdjustRequest, Adjusted, DiskCommand, Fence, HostVmState, ProvisionRequest, Provisioned, StopRequest,
        VmCommand, VmObservation,
    },
    feature::DataDisk,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    activity::{Session, Sessions},
    capability::{Capabilities, DataDisks, Site},
    cgroup::Cgroups,
    disk::Driver,
    guest::Guest,
    handles::{Found, VmDirs},
    image::{Copied, Copying, ImageStore},
    kernel::Kernels,
    net::Lab,
    usage::Subject,
    vmm::Vmm,
};
use owner::Owner;
pub use owner::now_ms;

/// How many commands may wait for one VM's task: an operation sends one at a time.
const QUEUE: usize = 16;

/// What every VM's task needs.
pub struct Deps {
    /// Where VMs live.
    pub dirs: VmDirs,
    /// The host's state directory.
    pub state_dir: PathBuf,
    /// The images disks are cloned from.
    pub images: Arc<ImageStore>,
    /// The lab's network.
    pub lab: Lab,
    /// What VMs can have beside processors, memory and a root disk.
    pub capabilities: Capabilities,
    /// The VMMs' control groups, where the machine has them.
    pub cgroups: Option<Cgroups>,
    /// The VMM driver.
    pub vmm: Box<dyn Vmm>,
    /// The kernels guests boot.
    pub kernels: Kernels,
    /// How VMs' root disks are made.
    pub disks: Driver,
    /// Where VMs that changed by themselves are reported.
    pub reports: mpsc::UnboundedSender<VmObservation>,
}

/// A command to a VM's task.
enum Command {
    Provision(Box<ProvisionRequest>, oneshot::Sender<Result<Provisioned, ApiError>>),
    Boot(Fence, oneshot::Sender<Result<(), ApiError>>),
    Adjust(Box<AdjustRequest>, oneshot::Sender<Result<Adjusted, ApiError>>),
    /// Pauses the guest, or resumes it.
    Pause(Fence, bool, oneshot::Sender<Result<(), ApiError>>),
    /// Only checks the fence, for commands that then watch.
    Admit(Fence, oneshot::Sender<Result<(), ApiError>>),
    Stop(Fence, Duration, oneshot::Sender<Result<(), ApiError>>),
    Remove(Fence, oneshot::Sender<Result<(), ApiError>>),
    /// Copies the root disk; of no operation on the VM, so without a fence.
    Copy(Copying, oneshot::Sender<Result<Copied, ApiError>>),
}

/// What others hold of a VM's task.
#[derive(Clone)]
struct Handle {
    commands: mpsc::Sender<Command>,
    observed: watch::Receiver<VmObservation>,
    guest: watch::Receiver<Option<Guest>>,
    /// What of it can be measured.
    measured: watch::Receiver<Option<Subject>>,
}

/// All VMs of this host.
pub struct Vms {
    deps: Arc<Deps>,
    /// Held for map operations only, never across I/O.
    tasks: Mutex<HashMap<VmId, Handle>>,
    /// VMs the lab has no row of, as it said last. Held for set operations only.
    orphans: Mutex<HashSet<VmId>>,
    /// Ways into VMs that are open over the bus.
    sessions: Sessions,
}

impl Vms {
    /// No VMs yet; [`Vms::adopt`] finds those that are there.
    pub fn new(deps: Deps) -> Arc<Self> {
        let vms = Arc::new(Self {
            deps: Arc::new(deps),
            tasks: Mutex::default(),
            orphans: Mutex::default(),
            sessions: Sessions::default(),
        });
        let disks: Weak<Self> = Arc::downgrade(&vms);
        vms.deps.images.attach(disks);
        vms
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, Handle>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes which VMs the lab has no row of.
    pub fn set_orphans(&self, orphans: HashSet<VmId>) {
        *self.orphans.lock().unwrap_or_else(PoisonError::into_inner) = orphans;
    }

    /// The VMs the lab had no row of when the host registered.
    fn orphans(&self) -> HashSet<VmId> {
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn known(&self, vm: VmId) -> Option<Handle> {
        self.tasks().get(&vm).filter(|handle| !handle.commands.is_closed()).cloned()
    }

    /// The VM's task; a fresh one for a VM that is not here.
    fn task(&self, vm: VmId) -> Handle {
        let mut tasks = self.tasks();
        if let Some(handle) = tasks.get(&vm).filter(|handle| !handle.commands.is_closed()) {
            return handle.clone();
        }
        let handle = Owner::absent(vm, self.deps.clone()).start();
        tasks.insert(vm, handle.clone());
        handle
    }

    /// Sends a command; one that meets a task at its end goes to the next.
    async fn send<T>(
        &self,
        vm: VmId,
        command: impl Fn(oneshot::Sender<Result<T, ApiError>>) -> Command,
    ) -> Result<(T, Handle), ApiError> {
        for _ in 0..3 {
            let handle = self.task(vm);
            let (answer, answered) = oneshot::channel();
            if handle.commands.send(command(answer)).await.is_ok()
                && let Ok(outcome) = answered.await
            {
                return outcome.map(|value| (value, handle));
            }
        }
        Err(ApiError::aborted(format!("the VM {vm} is being removed")))
    }

    /// Makes a VM's directory, handles, disk, tap and config drive.
    ///
    /// # Errors
    /// A stale epoch, an unknown image, a full disk.
    pub async fn provision(&self, request: ProvisionRequest) -> Result<Provisioned, ApiError> {
        let vm = request.spec.id;
        Ok(self.send(vm, |answer| Command::Provision(Box::new(request.clone()), answer)).await?.0)
    }

    /// Starts a VM's VMM; one that runs already is fine.
    ///
    /// # Errors
    /// A stale epoch, a VM that is not provisioned, a VMM that does not start.
    pub async fn boot(&self, command: VmCommand) -> Result<VmObservation, ApiError> {
        let ((), handle) = self.send(command.vm, |answer| Command::Boot(command.fence, answer)).await?;
        Ok(handle.observed.borrow().clone())
    }

    /// Waits until a booting VM is ready or has failed.
    ///
    /// # Errors
    /// A stale epoch.
    pub async fn await_ready(&self, command: VmCommand) -> Result<VmObservation, ApiError> {
        let ((), handle) = self.send(command.vm, |answer| Command::Admit(command.fence, answer)).await?;
        Ok(observe(handle, command.wait_ms, |state| state != HostVmState::Booting).await)
    }

    /// Changes what a VM is to be: at once what can be, the rest from its next start on.
    ///
    /// # Errors
    /// A stale epoch, a VM that is not provisioned, a port that is taken, a VMM that does not answer.
    pub async fn adjust(&self, request: AdjustRequest) -> Result<Adjusted, ApiError> {
        let vm = request.vm;
        self.send(vm, |answer| Command::Adjust(Box::new(request.clone()), answer)).await.map(|(adjusted, _)| adjusted)
    }

    /// Pauses a running VM's guest, or resumes it; a repeat is fine.
    ///
    /// # Errors
    /// A stale epoch, a VM that does not run, a VMM that does not answer.
    pub async fn pause(&self, command: VmCommand, paused: bool) -> Result<VmObservation, ApiError> {
        let ((), handle) = self.send(command.vm, |answer| Command::Pause(command.fence, paused, answer)).await?;
        Ok(handle.observed.borrow().clone())
    }

    /// Stops a VM and waits until it is off.
    ///
    /// # Errors
    /// A stale epoch.
    pub async fn stop(&self, request: StopRequest) -> Result<VmObservation, ApiError> {
        let grace = Duration::from_millis(request.grace_ms);
        let ((), handle) = self.send(request.vm, |answer| Command::Stop(request.fence, grace, answer)).await?;
        let off = |state| !matches!(state, HostVmState::Booting | HostVmState::Ready | HostVmState::Paused);
        Ok(observe(handle, request.wait_ms, off).await)
    }

    /// Ends a VM's VMM and removes all the host has of it.
    ///
    /// # Errors
    /// A stale epoch, or something that cannot be removed.
    pub async fn remove(&self, command: VmCommand) -> Result<(), ApiError> {
        let address = match self.deps.dirs.load(command.vm) {
            Ok(Found::Whole(handles)) => Some(handles.spec.address.addr()),
            _ => None,
        };
        self.send(command.vm, |answer| Command::Remove(command.fence, answer)).await?;
        self.tasks().retain(|_, handle| !handle.commands.is_closed());
        if let Some(address) = address {
            self.let_through_again(address).await;
        }
        Ok(())
    }

    /// Lets the VM that has an address now through again, should one that was removed have had it before: the lab had lost
    /// that one's row and given the address away.
    async fn let_through_again(&self, address: std::net::Ipv4Addr) {
        let deps = self.deps.clone();
        let found = tokio::task::spawn_blocking(move || {
            let all = deps.dirs.all().unwrap_or_default().into_iter();
            let whole =
                all.filter_map(|(_, found)| if let Found::Whole(handles) = found { Some(handles) } else { None });
            let others = whole.filter(|handles| handles.spec.address.addr() == address && handles.vmm.is_some());
            others
                .inspect(|handles| {
                    let dir = deps.dirs.dir(handles.spec.id);
                    let site = Site { spec: &handles.spec, dir: &dir, tap: &handles.tap };
                    if let Err(error) = deps.capabilities.prepare(site) {
                        tracing::error!(vm.id = %handles.spec.id, %error, "a VM is cut off");
                    }
                })
                .collect::<Vec<_>>()
        });
        for handles in found.await.unwrap_or_default() {
            let dir = self.deps.dirs.dir(handles.spec.id);
            let site = Site { spec: &handles.spec, dir: &dir, tap: &handles.tap };
            self.deps.capabilities.after_boot(site);
        }
    }

    /// Removes a kept disk's file.
    ///
    /// # Errors
    /// A VM that is here has it, or it cannot be removed.
    pub async fn remove_disk(&self, request: DiskCommand) -> Result<(), ApiError> {
        let deps = self.deps.clone();
        let removed = tokio::task::spawn_blocking(move || {
            for (vm, found) in deps.dirs.all().map_err(|error| ApiError::internal(error.to_string()))? {
                let has = |disk: &DataDisk| disk.keep && disk.name == request.disk;
                if matches!(&found, Found::Whole(handles) if handles.spec.features.disks.iter().any(has)) {
                    let message = format!("the disk {} is in use by the VM {vm}", request.disk);
                    return Err(ApiError::failed_precondition(message));
                }
            }
            DataDisks::new(&deps.state_dir).remove(&request.disk)
        });
        removed.await.map_err(|error| ApiError::internal(format!("the removal failed: {error}")))?
    }

    /// What is true of every VM that is here.
    pub fn observations(&self) -> Vec<VmObservation> {
        let tasks = self.tasks();
        let all = tasks.values().map(|handle| handle.observed.borrow().clone());
        all.filter(|observation| observation.state != HostVmState::Absent).collect()
    }

    /// Every VM that is here, with where it stands, as it can be measured.
    pub fn subjects(&self) -> Vec<(Subject, HostVmState)> {
        let tasks = self.tasks();
        let all = tasks.values().filter_map(|handle| {
            let subject = handle.measured.borrow().clone()?;
            Some((subject, handle.observed.borrow().state))
        });
        all.collect()
    }

    /// The connection into a running VM's guest.
    ///
    /// # Errors
    /// `not_found`, or `failed_precondition` when it does not run.
    pub fn guest(&self, vm: VmId) -> Result<(Guest, watch::Receiver<VmObservation>), ApiError> {
        let handle = self.known(vm).ok_or_else(|| ApiError::not_found(format!("no VM {vm} on this host")))?;
        let guest = handle.guest.borrow().clone();
        let guest = guest.ok_or_else(|| ApiError::failed_precondition(format!("the VM {vm} does not run")))?;
        Ok((guest, handle.observed))
    }

    /// Notes that a session into the VM is open, until what this gives is dropped.
    pub fn session(&self, vm: VmId) -> Session {
        self.sessions.open(vm)
    }

    /// When the VM was used by a session or through a published port last, Unix time in milliseconds; 0: never.
    pub fn used_at(&self, vm: VmId, now_ms: u64) -> u64 {
        self.sessions.used_at(vm, now_ms).max(self.deps.capabilities.used_at(vm, now_ms))
    }

    /// Forgets the sessions of VMs that do not run.
    pub fn retain_sessions(&self, here: impl Fn(VmId) -> bool) {
        self.sessions.retain(here);
    }

    /// A VM's directory.
    pub fn dir(&self, vm: VmId) -> PathBuf {
        self.deps.dirs.dir(vm)
    }

    /// What all tasks need, for the reconciling parts of the agent.
    pub fn deps(&self) -> &Deps {
        &self.deps
    }
}

/// Waits until the state is one that is waited for, or the time is up.
async fn observe(mut handle: Handle, wait_ms: u64, enough: impl Fn(HostVmState) -> bool) -> VmObservation {
    let bound = Duration::from_millis(wait_ms);
    let reached = handle.observed.wait_for(|seen| enough(seen.state));
    // When time is up, or the VM was removed meanwhile, what was seen last is the answer.
    drop(tokio::time::timeout(bound, reached).await);
    handle.observed.borrow().clone()
}

//! A host-agent that runs no VMs: it remembers what it was told, and fails when asked to.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use bus::{Bus, Service};
use contract::{
    AgentVerb, ApiError, HostId, VmId,
    agent::{
        Adjusted, Fence, HostUsage, HostVmState, KernelInventory, KernelsHere, Provisioned, VmAdjust, VmAwaitReady,
        VmBoot, VmCommand, VmObservation, VmPause, VmProvision, VmRemove, VmResume, VmStop,
    },
    guest::GuestFacts,
    host::{self, Capacity, Empty, HeartbeatRequest, RegisterRequest, Registered, ReportRequest},
    idle::{Activity, ActivityRequest, Idleness},
    usage::{Counters, Sample, SampleRequest, Samples},
};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

/// How the agent behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Provisioning fails: no disk space.
    DiskFull,
    /// The VMM ends while the guest boots.
    Panics,
    /// The guest is never ready.
    Hangs,
    /// Every command is answered with `unavailable`.
    Away,
}

/// One command as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub verb: &'static str,
    pub vm: VmId,
    pub epoch: i64,
}

pub struct FakeAgent {
    pub id: HostId,
    inner: Arc<Inner>,
    bus: Bus,
    incarnation: Mutex<Uuid>,
    _heart: DropGuard,
    _service: Service,
}

struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    mood: Mood,
    capacity: Capacity,
    silent: bool,
    vms: BTreeMap<VmId, HostVmState>,
    epochs: HashMap<VmId, i64>,
    log: Vec<Command>,
    /// How many boots are under way, and were at the most.
    booting: usize,
    booting_max: usize,
    boot_time: Duration,
    kernels_lost: bool,
}

impl FakeAgent {
    /// From now on it has none of the lab's kernels.
    pub fn lose_kernels(&self) {
        self.inner.state.lock().unwrap().kernels_lost = true;
    }

    /// Registers a host and serves its commands.
    pub async fn start(bus: &Bus, id: &str, capacity: Capacity) -> Self {
        let id: HostId = id.parse().unwrap();
        let state = State {
            mood: Mood::Well,
            capacity,
            silent: false,
            vms: BTreeMap::new(),
            epochs: HashMap::new(),
            log: Vec::new(),
            booting: 0,
            booting_max: 0,
            boot_time: Duration::from_millis(20),
            kernels_lost: false,
        };
        let inner = Arc::new(Inner { state: Mutex::new(state), changed: Notify::new() });
        let service = serve(bus, &id, &inner).await;
        let incarnation = Uuid::now_v7();
        let heart = CancellationToken::new();
        let agent = Self {
            id: id.clone(),
            inner: inner.clone(),
            bus: bus.clone(),
            incarnation: Mutex::new(incarnation),
            _heart: heart.clone().drop_guard(),
            _service: service,
        };
        testkit::wait_until("a registration", super::BOUND, async || agent.register().await.ok()).await;
        tokio::spawn(heart.run_until_cancelled_owned(beat(bus.clone(), id, incarnation, inner)));
        agent
    }

    /// Registers as it is.
    pub async fn register(&self) -> Result<Registered, ApiError> {
        let vms = self.observations();
        let capacity = self.inner.state.lock().unwrap().capacity;
        self.register_with(self.incarnation(), capacity, vms).await
    }

    pub async fn register_with(
        &self,
        incarnation: Uuid,
        capacity: Capacity,
        vms: Vec<VmObservation>,
    ) -> Result<Registered, ApiError> {
        let request = RegisterRequest {
            host: self.id.clone(),
            incarnation,
            capacity,
            vmm: "fake".into(),
            version: "0.1.0".into(),
            vms,
            kernels: vec![],
        };
        self.bus.call::<host::Register>(&request).await
    }

    pub fn incarnation(&self) -> Uuid {
        *self.incarnation.lock().unwrap()
    }

    /// Reports a VM as if it had changed by itself.
    pub async fn report(&self, vm: VmId, state: HostVmState, epoch: i64) -> Result<Empty, ApiError> {
        let seen = VmObservation {
            vm,
            state,
            epoch,
            pid: None,
            guest: None,
            reason: Some("killed by signal 9".into()),
            console_tail: None,
        };
        let request = ReportRequest { host: self.id.clone(), incarnation: self.incarnation(), vms: vec![seen] };
        self.bus.call::<host::Report>(&request).await
    }

    /// Tells for how long VMs are idle; those with a limit.
    pub async fn tell_idle(&self, idle: &[(VmId, u64)]) -> Result<Vec<VmId>, ApiError> {
        let vms = idle.iter().map(|(vm, seconds)| Idleness { vm: *vm, idle_ms: seconds * 1000 }).collect();
        let request = ActivityRequest { host: self.id.clone(), incarnation: self.incarnation(), vms };
        Ok(self.bus.call::<Activity>(&request).await?.limited)
    }

    /// Makes a VM end by itself, and reports it.
    pub async fn end(&self, vm: VmId, state: HostVmState) {
        self.inner.state.lock().unwrap().vms.insert(vm, state);
        self.report(vm, state, self.epoch(vm)).await.unwrap();
    }

    pub fn set_mood(&self, mood: Mood) {
        self.inner.state.lock().unwrap().mood = mood;
        self.inner.changed.notify_waiters();
    }

    pub fn set_capacity(&self, capacity: Capacity) {
        self.inner.state.lock().unwrap().capacity = capacity;
    }

    pub fn set_boot_time(&self, time: Duration) {
        self.inner.state.lock().unwrap().boot_time = time;
    }

    /// Stops or resumes heartbeats.
    pub fn set_silent(&self, silent: bool) {
        self.inner.state.lock().unwrap().silent = silent;
    }

    pub fn log(&self) -> Vec<Command> {
        self.inner.state.lock().unwrap().log.clone()
    }

    pub fn booting_max(&self) -> usize {
        self.inner.state.lock().unwrap().booting_max
    }

    pub fn vms(&self) -> BTreeMap<VmId, HostVmState> {
        self.inner.state.lock().unwrap().vms.clone()
    }

    pub fn epoch(&self, vm: VmId) -> i64 {
        self.inner.state.lock().unwrap().epochs.get(&vm).copied().unwrap_or(0)
    }

    pub fn observations(&self) -> Vec<VmObservation> {
        let state = self.inner.state.lock().unwrap();
        state.vms.keys().map(|vm| state.observe(*vm)).collect()
    }
}

impl State {
    fn observe(&self, vm: VmId) -> VmObservation {
        let state = self.vms.get(&vm).copied().unwrap_or(HostVmState::Absent);
        let failed = state == HostVmState::Failed;
        VmObservation {
            vm,
            state,
            epoch: self.epochs.get(&vm).copied().unwrap_or(0),
            pid: None,
            guest: (state == HostVmState::Ready).then(|| GuestFacts {
                ssh_port: Some(22),
                init: "systemd".into(),
                ..GuestFacts::default()
            }),
            reason: failed.then(|| "the kernel panicked".to_owned()),
            console_tail: failed.then(|| "Kernel panic - not syncing".to_owned()),
        }
    }

    fn measure(&self, request: SampleRequest) -> Result<Samples, ApiError> {
        if self.mood == Mood::Away {
            return Err(ApiError::unavailable("the host-agent of this host is not connected"));
        }
        let asked = |vm: &VmId| request.vms.as_ref().is_none_or(|vms| vms.contains(vm));
        let sample = |(vm, state): (&VmId, &HostVmState)| {
            let counters = Counters { spawned_at_ms: 1, cpu_usec: 5, memory_bytes: 7, disk: None, network: None };
            let counters = (*state == HostVmState::Ready).then_some(counters);
            Sample { vm: *vm, state: *state, at_ms: 1_000, disk_allocated_bytes: 4096, counters }
        };
        Ok(Samples { samples: self.vms.iter().filter(|(vm, _)| asked(vm)).map(sample).collect() })
    }

    /// Checks the fence and the mood, and logs.
    fn take(&mut self, verb: &'static str, vm: VmId, fence: Fence) -> Result<(), ApiError> {
        if self.mood == Mood::Away {
            return Err(ApiError::unavailable("the host-agent of this host is not connected"));
        }
        let seen = self.epochs.entry(vm).or_insert(0);
        if fence.epoch < *seen {
            return Err(ApiError::aborted("a newer claim commands this VM"));
        }
        *seen = fence.epoch;
        self.log.push(Command { verb, vm, epoch: fence.epoch });
        Ok(())
    }
}

async fn beat(bus: Bus, host: HostId, incarnation: Uuid, inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (silent, capacity) = {
            let state = inner.state.lock().unwrap();
            (state.silent, state.capacity)
        };
        if !silent {
            // The service may be down in this test: the next beat finds it again.
            drop(
                bus.call::<host::Heartbeat>(&HeartbeatRequest {
                    host: host.clone(),
                    incarnation,
                    capacity,
                    kernels: None,
                })
                .await,
            );
        }
    }
}

async fn serve(bus: &Bus, id: &HostId, inner: &Arc<Inner>) -> Service {
    let service = bus.service(&format!("host-agent-{id}"), "0.1.0", "a fake").await.unwrap();
    let agent = inner.clone();
    service
        .serve_agent::<KernelInventory, _>(id, move |_, _| {
            let lost = agent.state.lock().unwrap().kernels_lost;
            // Else as an agent that does not know the question.
            async move { lost.then(KernelsHere::default).ok_or_else(|| ApiError::unavailable("no such command")) }
        })
        .await
        .unwrap();
    let agent = inner.clone();
    service
        .serve_agent::<VmProvision, _>(id, move |_, request| {
            let agent = agent.clone();
            async move {
                let mut state = agent.state.lock().unwrap();
                state.take("provision", request.spec.id, request.fence)?;
                if state.mood == Mood::DiskFull {
                    return Err(ApiError::resource_exhausted("the host's disk is full"));
                }
                state.vms.entry(request.spec.id).or_insert(HostVmState::Off);
                Ok(Provisioned { ssh_host_key: "ssh-ed25519 AAAA".into() })
            }
        })
        .await
        .unwrap();
    let agent = inner.clone();
    service
        .serve_agent::<VmBoot, _>(id, move |_, request| {
            let agent = agent.clone();
            async move {
                let mut state = agent.state.lock().unwrap();
                state.take("boot", request.vm, request.fence)?;
                if state.vms.get(&request.vm).is_some_and(|vm| *vm != HostVmState::Ready) {
                    state.vms.insert(request.vm, HostVmState::Booting);
                }
                Ok(state.observe(request.vm))
            }
        })
        .await
        .unwrap();
    let agent = inner.clone();
    service
        .serve_agent::<VmAwaitReady, _>(id, move |_, request| {
            let agent = agent.clone();
            async move { await_ready(&agent, request.vm, request.fence, request.wait_ms).await }
        })
        .await
        .unwrap();
    let agent = inner.clone();
    service
        .serve_agent::<VmAdjust, _>(id, move |_, request| {
            let agent = agent.clone();
            async move {
                agent.state.lock().unwrap().take("adjust", request.vm, request.fence).map(|()| Adjusted::default())
            }
        })
        .await
        .unwrap();
    let agent = inner.clone();
    service
        .serve_agent::<VmStop, _>(id, move |_, request| {
            let agent = agent.clone();
            async move {
                let mut state = agent.state.lock().unwrap();
                state.take("stop", request.vm, request.fence)?;
                if let Some(vm) = state.vms.get_mut(&request.vm) {
                    *vm = HostVmState::Off;
                }
                Ok(state.observe(request.vm))
            }
        })
        .await
        .unwrap();
    let agent = inner.clone();
    service
        .serve_agent::<VmRemove, _>(id, move |_, request| {
            let agent = agent.clone();
            async move {
                let mut state = agent.state.lock().unwrap();
                state.take("remove", request.vm, request.fence)?;
                state.vms.remove(&request.vm);
                Ok(Empty {})
            }
        })
        .await
        .unwrap();
    serve_pause::<VmPause>(&service, id, inner, ("pause", HostVmState::Paused)).await;
    serve_pause::<VmResume>(&service, id, inner, ("resume", HostVmState::Ready)).await;
    let agent = inner.clone();
    service
        .serve_agent::<HostUsage, _>(id, move |_, request| {
            let agent = agent.clone();
            async move { agent.state.lock().unwrap().measure(request) }
        })
        .await
        .unwrap();
    service.ready().await.unwrap();
    service
}

async fn serve_pause<A: AgentVerb<Request = VmCommand, Reply = VmObservation>>(
    service: &Service,
    id: &HostId,
    inner: &Arc<Inner>,
    (verb, becomes): (&'static str, HostVmState),
) {
    let agent = inner.clone();
    let serving = service.serve_agent::<A, _>(id, move |_, request| {
        let agent = agent.clone();
        async move {
            let mut state = agent.state.lock().unwrap();
            state.take(verb, request.vm, request.fence)?;
            state.vms.insert(request.vm, becomes);
            Ok(state.observe(request.vm))
        }
    });
    serving.await.unwrap();
}

async fn await_ready(agent: &Inner, vm: VmId, fence: Fence, wait_ms: u64) -> Result<VmObservation, ApiError> {
    let (mood, time) = {
        let mut state = agent.state.lock().unwrap();
        state.take("await_ready", vm, fence)?;
        state.booting += 1;
        state.booting_max = state.booting_max.max(state.booting);
        (state.mood, state.boot_time)
    };
    let time = if mood == Mood::Hangs { Duration::from_millis(wait_ms) } else { time };
    drop(tokio::time::timeout(time, agent.changed.notified()).await);
    let mut state = agent.state.lock().unwrap();
    state.booting -= 1;
    let next = match mood {
        Mood::Well | Mood::DiskFull | Mood::Away => HostVmState::Ready,
        Mood::Panics => HostVmState::Failed,
        Mood::Hangs => HostVmState::Booting,
    };
    if let Some(vm) = state.vms.get_mut(&vm)
        && *vm == HostVmState::Booting
    {
        *vm = next;
    }
    Ok(state.observe(vm))
}

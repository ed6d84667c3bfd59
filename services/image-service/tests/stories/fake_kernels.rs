//! Hosts that keep kernels in memory: what is staged is what its path is called, or what another of these hosts sends.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use bus::{Bus, Service};
use contract::{
    ApiError, HostId, KernelId, OperationId, SessionId,
    agent::{
        KernelDiscard, KernelHere, KernelInventory, KernelPublish, KernelRemove, KernelSend, KernelStage, KernelsHere,
        StageKernelSource, StageKernelStatus, StagedKernel, StagingHere,
    },
    host::Empty,
};

use crate::fake_host::digest;

#[derive(Default)]
struct State {
    away: BTreeSet<HostId>,
    staging: BTreeMap<(HostId, OperationId), StagedKernel>,
    /// And who brought each.
    kernels: BTreeMap<(HostId, KernelId), (OperationId, StagedKernel)>,
    /// What is sent on streams.
    sent: BTreeMap<SessionId, StagedKernel>,
    /// How many streams break before one comes whole.
    breaking: usize,
    /// How old everything is, in seconds.
    age_s: u64,
}

/// The kernels of all hosts.
#[derive(Clone, Default)]
pub struct FakeKernels {
    state: Arc<Mutex<State>>,
    services: Arc<Mutex<Vec<Service>>>,
}

/// The kernel some content is.
pub fn kernel(content: &str) -> StagedKernel {
    StagedKernel { digest: digest(content), release: "6.1.0-1".into(), architecture: "amd64".into(), bytes: 7 }
}

impl FakeKernels {
    /// Serves the commands about kernels to one host more.
    pub async fn add(&self, bus: &Bus, id: &str) {
        let id: HostId = id.parse().unwrap();
        let service = bus.service("host-agent", "0.1.0", "a fake").await.unwrap();
        macro_rules! command {
            ($verb:ty, |$state:ident, $host:ident, $request:ident| $answer:expr) => {
                let (all, here) = (self.state.clone(), id.clone());
                let served = service.serve_agent::<$verb, _>(&id, move |_, $request| {
                    let (all, $host) = (all.clone(), here.clone());
                    async move {
                        let mut guard = all.lock().unwrap();
                        let $state = &mut *guard;
                        if $state.away.contains(&$host) {
                            return Err(ApiError::unavailable("the fake host is away"));
                        }
                        $answer
                    }
                });
                served.await.unwrap();
            };
        }
        command!(KernelStage, |state, host, request| {
            let staged = match request.source {
                StageKernelSource::Path(path) if path.ends_with("broken") => {
                    let error = ApiError::invalid_argument("no kernel can be imported from this");
                    return Ok(StageKernelStatus::Failed { error });
                }
                StageKernelSource::Path(path) => kernel(&path),
                StageKernelSource::Stream(_) if state.breaking > 0 => {
                    state.breaking -= 1;
                    return Ok(StageKernelStatus::Failed { error: ApiError::unavailable("the stream broke") });
                }
                StageKernelSource::Stream(session) => state.sent.remove(&session).unwrap_or_else(|| kernel("upload")),
            };
            assert!(request.digest.is_none_or(|expected| expected == staged.digest));
            state.staging.insert((host, request.fence.operation), staged.clone());
            Ok(StageKernelStatus::Done { kernel: staged })
        });
        command!(KernelPublish, |state, host, request| {
            let (operation, place) = (request.fence.operation, (host.clone(), request.kernel));
            let there = state.kernels.get(&place).cloned();
            if let Some((_, there)) = there.as_ref().filter(|(by, _)| *by == operation) {
                return Ok(there.clone());
            }
            let staged = state.staging.get(&(host.clone(), operation)).cloned();
            let staged = staged.ok_or_else(|| ApiError::failed_precondition("nothing is staged"))?;
            if there.is_none_or(|(_, there)| there.digest != staged.digest) {
                state.staging.remove(&(host, operation));
                state.kernels.insert(place, (operation, staged.clone()));
            }
            Ok(staged)
        });
        command!(KernelDiscard, |state, host, request| {
            state.staging.remove(&(host, request.fence.operation));
            Ok(Empty {})
        });
        command!(KernelRemove, |state, host, request| {
            state.kernels.remove(&(host, request.kernel));
            Ok(Empty {})
        });
        command!(KernelInventory, |state, host, request| {
            let kernels =
                state.kernels.iter().filter(|((at, id), _)| *at == host && request.only.is_none_or(|only| only == *id));
            let here =
                |((_, kernel), (operation, there)): (&(HostId, KernelId), &(OperationId, StagedKernel))| KernelHere {
                    kernel: *kernel,
                    digest: Some(there.digest.clone()),
                    damage: None,
                    operation: Some(*operation),
                    disk_bytes: 4096,
                    age_s: state.age_s,
                };
            let staging = |operation: OperationId| StagingHere {
                operation,
                working: false,
                epoch: 1,
                disk_bytes: 512,
                age_s: state.age_s,
            };
            let stagings = state.staging.keys().filter(|(at, _)| *at == host && request.only.is_none());
            let stagings = stagings.map(|(_, operation)| staging(*operation)).collect();
            Ok(KernelsHere { kernels: kernels.map(here).collect(), stagings, strays: vec![] })
        });
        command!(KernelSend, |state, host, request| {
            let sent = state.kernels.get(&(host, request.kernel)).map(|(_, kernel)| kernel.clone());
            let sent = sent.ok_or_else(|| ApiError::failed_precondition("it is not here"))?;
            state.sent.insert(request.session, sent);
            Ok(Empty {})
        });
        service.ready().await.unwrap();
        self.services.lock().unwrap().push(service);
    }

    /// A kernel came with an image.
    pub fn stage(&self, host: &HostId, operation: OperationId, kernel: &StagedKernel) {
        self.state.lock().unwrap().staging.insert((host.clone(), operation), kernel.clone());
    }

    pub fn unstage(&self, host: &HostId, operation: OperationId) {
        self.state.lock().unwrap().staging.remove(&(host.clone(), operation));
    }

    /// The host's directory of the kernel is gone.
    pub fn lose(&self, host: &str, kernel: KernelId) {
        self.state.lock().unwrap().kernels.remove(&(host.parse().unwrap(), kernel));
    }

    /// The host's directory of the kernel is there, brought by that operation: back, or left.
    pub fn leave(&self, host: &str, kernel: KernelId, by: OperationId, content: &str) {
        let place = (host.parse().unwrap(), kernel);
        self.state.lock().unwrap().kernels.insert(place, (by, self::kernel(content)));
    }

    pub fn set_age(&self, age_s: u64) {
        self.state.lock().unwrap().age_s = age_s;
    }

    pub fn set_away(&self, host: &str, away: bool) {
        let mut state = self.state.lock().unwrap();
        let host = host.parse().unwrap();
        if away {
            state.away.insert(host)
        } else {
            state.away.remove(&host)
        };
    }

    pub fn break_streams(&self, count: usize) {
        self.state.lock().unwrap().breaking = count;
    }

    /// Which host has which kernels.
    pub fn published(&self) -> Vec<(String, KernelId)> {
        self.state.lock().unwrap().kernels.keys().map(|(host, kernel)| (host.to_string(), *kernel)).collect()
    }

    pub fn stagings(&self) -> usize {
        self.state.lock().unwrap().staging.len()
    }
}

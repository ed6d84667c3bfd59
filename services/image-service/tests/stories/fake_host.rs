//! Hosts without disks: they remember what they were told, and block or fail on demand.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use bus::{Bus, Service};
use contract::{
    ApiError, HostId, ImageId, MebiBytes, OperationId, VmId,
    agent::{
        Fence, ImageDiscard, ImageExport, ImageHere, ImageInventory, ImagePublish, ImagePush, ImageReclaim,
        ImageRemove, ImageResolve, ImageStage, Inventory, PushStatus, PushedBundle, ResolvedImage, StageStatus,
        StagedImage, StagedKernel, StagingHere, VmKernel,
    },
    host::{self, Capacity, Empty, Host, HostList, HostState},
    image::ImageConfig,
    operation::Progress,
    vm::{self, Vm, VmState},
};
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::Notify;

use crate::fake_kernels::FakeKernels;

/// One host of the lab, and its agent.
pub struct FakeHost {
    pub id: HostId,
    inner: Arc<Inner>,
    service: Service,
}

struct Inner {
    state: Mutex<State>,
    changed: Notify,
    id: HostId,
    /// Where kernels go that come with images.
    kernels: OnceLock<FakeKernels>,
}

#[derive(Default)]
struct State {
    /// Sources whose download does not end.
    blocked: BTreeSet<String>,
    /// Sources whose download fails, and how.
    failing: BTreeMap<String, ApiError>,
    /// Renames do not end.
    renames_blocked: bool,
    /// Every command is answered with `unavailable`.
    away: bool,
    /// How many were.
    refused: usize,
    /// How often each source was asked for.
    asked: HashMap<String, usize>,
    renaming: usize,
    epochs: HashMap<OperationId, i64>,
    staging: BTreeMap<OperationId, String>,
    /// What sources mean that were pushed to anew; others mean what they are called.
    pushed: BTreeMap<String, String>,
    images: BTreeMap<ImageId, StagedImage>,
    /// What kernels come along with what content.
    bundled: BTreeMap<String, StagedKernel>,
    /// What kernels were taken along to where.
    taken: BTreeMap<String, Option<VmKernel>>,
    /// Who published each image.
    makers: BTreeMap<ImageId, Vec<OperationId>>,
    /// Images whose root filesystem is cut.
    damaged: BTreeSet<ImageId>,
    /// Names of nobody's.
    strays: Vec<String>,
    /// How old everything is.
    age_s: u64,
    /// How often the inventory was asked for.
    listed: usize,
}

impl State {
    fn content(&self, source: &str) -> String {
        self.pushed.get(source).cloned().unwrap_or_else(|| source.to_owned())
    }

    /// Whether this command may be carried out.
    fn admit(&mut self, fence: Fence) -> Result<(), ApiError> {
        if self.away {
            self.refused += 1;
            return Err(ApiError::unavailable("the fake host is away"));
        }
        let newest = self.epochs.entry(fence.operation).or_default();
        if fence.epoch < *newest {
            return Err(ApiError::aborted("a newer claim was seen"));
        }
        *newest = fence.epoch;
        Ok(())
    }
}

/// The digest of some content.
pub fn digest(content: &str) -> String {
    // FNV-1a: a digest in form, and another one for other content.
    let hash = content
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("sha256:{}", format!("{hash:016x}").repeat(4))
}

/// What every staged image is.
fn staged(content: &str) -> StagedImage {
    StagedImage {
        digest: digest(content),
        architecture: "amd64".into(),
        rootfs_bytes: 1 << 20,
        config: ImageConfig { cmd: vec!["/bin/sh".into()], ..ImageConfig::default() },
        kernel: None,
    }
}

impl FakeHost {
    /// Serves the commands about images.
    pub async fn start(bus: &Bus, id: &str) -> Self {
        let host = Self::old(bus, id).await;
        let inner = host.inner.clone();
        let inventory = host.service.serve_agent::<ImageInventory, _>(&host.id, move |_, request| {
            let host = inner.clone();
            async move { host.inventory(request.after) }
        });
        inventory.await.unwrap();
        let inner = host.inner.clone();
        let reclaim = host.service.serve_agent::<ImageReclaim, _>(&host.id, move |_, request| {
            let host = inner.clone();
            async move {
                let mut state = host.state.lock().unwrap();
                if state.makers.get(&request.image).is_some_and(|makers| *makers != request.operations) {
                    return Err(ApiError::failed_precondition("it was published anew since it was listed"));
                }
                state.images.remove(&request.image);
                state.makers.remove(&request.image);
                Ok(Empty {})
            }
        });
        reclaim.await.unwrap();
        host.service.ready().await.unwrap();
        host
    }

    /// One whose agent is older than the inventory.
    pub async fn old(bus: &Bus, id: &str) -> Self {
        let id: HostId = id.parse().unwrap();
        let inner = Arc::new(Inner {
            state: Mutex::default(),
            changed: Notify::new(),
            id: id.clone(),
            kernels: OnceLock::new(),
        });
        let service = bus.service("host-agent", "0.1.0", "a fake").await.unwrap();
        let host = inner.clone();
        let stage = service.serve_agent::<ImageStage, _>(&id, move |_, request| {
            let host = host.clone();
            async move { host.stage(request.fence, &request.source.to_string(), request.wait_ms).await }
        });
        stage.await.unwrap();
        let host = inner.clone();
        let resolve = service.serve_agent::<ImageResolve, _>(&id, move |_, request| {
            let host = host.clone();
            async move {
                let state = host.state.lock().unwrap();
                if state.away {
                    return Err(ApiError::unavailable("the fake host is away"));
                }
                let content = state.content(&request.source.to_string());
                let (image, kernel) = (staged(&content), state.bundled.get(&content));
                let kernel = kernel.map(|kernel| kernel.digest.clone());
                let layers = vec![1 << 10];
                Ok(ResolvedImage { digest: image.digest, architecture: image.architecture, layers, kernel })
            }
        });
        resolve.await.unwrap();
        let host = inner.clone();
        let publish = service.serve_agent::<ImagePublish, _>(&id, move |_, request| {
            let host = host.clone();
            async move { host.publish(request.fence, request.image).await }
        });
        publish.await.unwrap();
        let host = inner.clone();
        let discard = service.serve_agent::<ImageDiscard, _>(&id, move |_, request| {
            let host = host.clone();
            async move {
                let mut state = host.state.lock().unwrap();
                state.admit(request.fence)?;
                state.staging.remove(&request.fence.operation);
                if let Some(kernels) = host.kernels.get() {
                    kernels.unstage(&host.id, request.fence.operation);
                }
                Ok(Empty {})
            }
        });
        discard.await.unwrap();
        let host = inner.clone();
        let remove = service.serve_agent::<ImageRemove, _>(&id, move |_, request| {
            let host = host.clone();
            async move {
                let mut state = host.state.lock().unwrap();
                state.admit(request.fence)?;
                state.images.remove(&request.image);
                state.makers.remove(&request.image);
                Ok(Empty {})
            }
        });
        remove.await.unwrap();
        let host = inner.clone();
        let push = service.serve_agent::<ImagePush, _>(&id, move |_, request| {
            let host = host.clone();
            async move {
                host.state.lock().unwrap().taken.insert(request.reference.clone(), request.kernel);
                host.push(request.fence, request.image, &request.reference, request.wait_ms).await
            }
        });
        push.await.unwrap();
        let host = inner.clone();
        let export = service.serve_agent::<ImageExport, _>(&id, move |_, request| {
            let host = host.clone();
            async move { host.push(request.fence, request.image, &request.session.to_string(), request.wait_ms).await }
        });
        export.await.unwrap();
        service.ready().await.unwrap();
        Self { id, inner, service }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.inner.state.lock().unwrap());
        self.inner.changed.notify_waiters();
        changed
    }

    /// From now on the download of this source does not end, until it is released.
    pub fn block(&self, source: &str) {
        self.change(|state| state.blocked.insert(source.into()));
    }

    pub fn release(&self, source: &str) {
        self.change(|state| state.blocked.remove(source));
    }

    /// From now on the source means other content.
    pub fn push(&self, source: &str, content: &str) {
        self.change(|state| state.pushed.insert(source.into(), content.into()));
    }

    /// From now on the download of this source fails.
    pub fn fail(&self, source: &str, error: ApiError) {
        self.change(|state| state.failing.insert(source.into(), error));
    }

    /// From now on this kernel comes along with the source.
    pub fn bundle(&self, source: &str, kernel: StagedKernel, kernels: &FakeKernels) {
        drop(self.inner.kernels.set(kernels.clone()));
        self.change(|state| state.bundled.insert(source.into(), kernel));
    }

    /// The kernel that was taken along to there.
    pub fn taken(&self, to: &str) -> Option<VmKernel> {
        self.change(|state| state.taken.get(to).cloned().flatten())
    }

    pub fn block_renames(&self, blocked: bool) {
        self.change(|state| state.renames_blocked = blocked);
    }

    pub fn set_away(&self, away: bool) {
        self.change(|state| state.away = away);
    }

    /// How often the download of this source was asked for.
    pub fn asked(&self, source: &str) -> usize {
        self.change(|state| state.asked.get(source).copied().unwrap_or(0))
    }

    /// How many commands were refused while away.
    pub fn refused(&self) -> usize {
        self.change(|state| state.refused)
    }

    /// How many renames are under way.
    pub fn renaming(&self) -> usize {
        self.change(|state| state.renaming)
    }

    pub fn staging(&self) -> Vec<OperationId> {
        self.change(|state| state.staging.keys().copied().collect())
    }

    pub fn images(&self) -> Vec<ImageId> {
        self.change(|state| state.images.keys().copied().collect())
    }

    /// Leaves a staging of an operation there, as if its discard had never come.
    pub fn leave_staging(&self, operation: OperationId) {
        self.change(|state| state.staging.insert(operation, "left".into()));
    }

    /// Leaves an image's directory there that these operations published.
    pub fn leave_image(&self, image: ImageId, makers: &[OperationId]) {
        self.change(|state| {
            state.images.insert(image, staged("left"));
            state.makers.insert(image, makers.to_vec());
        });
    }

    /// The directory is lost.
    pub fn lose(&self, image: ImageId) {
        self.change(|state| state.images.remove(&image));
    }

    /// The directory is back.
    pub fn bring_back(&self, image: ImageId, content: &str) {
        self.change(|state| {
            state.images.insert(image, staged(content));
            state.damaged.remove(&image);
        });
    }

    pub fn damage(&self, image: ImageId) {
        self.change(|state| state.damaged.insert(image));
    }

    pub fn stray(&self, name: &str) {
        self.change(|state| state.strays.push(name.into()));
    }

    pub fn set_age(&self, age_s: u64) {
        self.change(|state| state.age_s = age_s);
    }

    pub fn listed(&self) -> usize {
        self.change(|state| state.listed)
    }
}

impl Inner {
    async fn stage(&self, fence: Fence, source: &str, wait_ms: u64) -> Result<StageStatus, ApiError> {
        let give_up = tokio::time::Instant::now() + Duration::from_millis(wait_ms);
        {
            let mut state = self.state.lock().unwrap();
            state.admit(fence)?;
            *state.asked.entry(source.to_owned()).or_default() += 1;
            if let Some(error) = state.failing.get(source) {
                return Ok(StageStatus::Failed { error: error.clone() });
            }
            let content = state.content(source);
            state.staging.entry(fence.operation).or_insert(content);
        }
        loop {
            let changed = self.changed.notified();
            {
                let state = self.state.lock().unwrap();
                if !state.blocked.contains(source) {
                    // As it was when it was downloaded.
                    let content = state.staging.get(&fence.operation).cloned();
                    let content = content.as_deref().unwrap_or(source);
                    let kernel = state.bundled.get(content).cloned();
                    if let (Some(kernel), Some(kernels)) = (&kernel, self.kernels.get()) {
                        kernels.stage(&self.id, fence.operation, kernel);
                    }
                    return Ok(StageStatus::Done { image: StagedImage { kernel, ..staged(content) } });
                }
            }
            if tokio::time::timeout_at(give_up, changed).await.is_err() {
                let progress = Progress { done: 1, total: 2 };
                return Ok(StageStatus::Running { phase: "downloading".into(), progress });
            }
        }
    }

    /// Packs nothing, and has a registry in which everything is new; blocks and fails by reference as a staging does.
    async fn push(&self, fence: Fence, image: ImageId, to: &str, wait_ms: u64) -> Result<PushStatus, ApiError> {
        let give_up = tokio::time::Instant::now() + Duration::from_millis(wait_ms);
        {
            let mut state = self.state.lock().unwrap();
            state.admit(fence)?;
            *state.asked.entry(to.to_owned()).or_default() += 1;
            if let Some(error) = state.failing.get(to) {
                return Ok(PushStatus::Failed { error: error.clone() });
            }
            if !state.images.contains_key(&image) {
                return Err(ApiError::not_found("the image is not on this host"));
            }
            state.staging.insert(fence.operation, to.to_owned());
        }
        loop {
            let changed = self.changed.notified();
            if !self.state.lock().unwrap().blocked.contains(to) {
                let pushed = PushedBundle {
                    manifest: format!("sha256:{to}"),
                    image: "sha256:image".into(),
                    bundle_bytes: 7,
                    sent_bytes: 8,
                };
                return Ok(PushStatus::Done { pushed });
            }
            if tokio::time::timeout_at(give_up, changed).await.is_err() {
                let progress = Progress { done: 1, total: 2 };
                return Ok(PushStatus::Running { phase: "pushing".into(), progress });
            }
        }
    }

    fn inventory(&self, after: Option<ImageId>) -> Result<Inventory, ApiError> {
        let mut state = self.state.lock().unwrap();
        state.listed += 1;
        if state.away {
            state.refused += 1;
            return Err(ApiError::unavailable("the fake host is away"));
        }
        let image = |(id, there): (&ImageId, &StagedImage)| ImageHere {
            image: *id,
            digest: Some(there.digest.clone()),
            damage: state.damaged.contains(id).then(|| "it is cut".to_owned()),
            operations: state.makers.get(id).cloned().unwrap_or_default(),
            disk_bytes: 4096,
            age_s: state.age_s,
        };
        let staging = |operation: &OperationId| StagingHere {
            operation: *operation,
            working: false,
            epoch: state.epochs.get(operation).copied().unwrap_or(0),
            disk_bytes: 512,
            age_s: state.age_s,
        };
        // One a page.
        let mut rest = state.images.iter().filter(|(id, _)| after.is_none_or(|after| **id > after));
        let (images, more) = (rest.next().map(image).into_iter().collect(), rest.next().is_some());
        let first = after.is_none();
        let stagings = state.staging.keys().filter(|_| first).map(staging).collect();
        let strays = if first { state.strays.clone() } else { vec![] };
        Ok(Inventory { images, more, stagings, strays, ..Inventory::default() })
    }

    async fn publish(&self, fence: Fence, image: ImageId) -> Result<StagedImage, ApiError> {
        {
            let mut state = self.state.lock().unwrap();
            state.admit(fence)?;
            state.renaming += 1;
        }
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state.lock().unwrap();
                if !state.renames_blocked {
                    state.renaming -= 1;
                    if let Some(source) = state.staging.remove(&fence.operation) {
                        let makers = state.makers.entry(image).or_default();
                        makers.push(fence.operation);
                        if state.damaged.remove(&image) || !state.images.contains_key(&image) {
                            state.makers.insert(image, vec![fence.operation]);
                        }
                        state.images.insert(image, staged(&source));
                    }
                    let published = state.images.get(&image).cloned();
                    return published.ok_or_else(|| ApiError::not_found("nothing is staged for this operation"));
                }
            }
            changed.await;
        }
    }
}

/// Finds a VM by name or id.
type Finds = Box<dyn Fn(&str) -> Option<Vm> + Send>;

/// The registries of hosts and VMs, as vm-lifecycle would serve them.
pub struct FakeRegistry {
    hosts: Arc<Mutex<Vec<Host>>>,
    vms: Arc<Mutex<Vec<Vm>>>,
    /// Knows more VMs.
    others: Arc<Mutex<Option<Finds>>>,
    _service: Service,
}

impl FakeRegistry {
    pub async fn start(bus: &Bus) -> Self {
        let hosts: Arc<Mutex<Vec<Host>>> = Arc::default();
        let service = bus.service("vm-lifecycle", "0.1.0", "a fake").await.unwrap();
        let listed = hosts.clone();
        let list = service.serve::<host::List, _>(move |_, _| {
            let hosts = listed.lock().unwrap().clone();
            async move { Ok(HostList { hosts }) }
        });
        list.await.unwrap();
        let vms: Arc<Mutex<Vec<Vm>>> = Arc::default();
        let others: Arc<Mutex<Option<Finds>>> = Arc::default();
        let (known, more) = (vms.clone(), others.clone());
        let get = service.serve::<vm::Get, _>(move |_, request| {
            let found = known.lock().unwrap().iter().find(|vm| vm.name.as_str() == request.vm).cloned();
            let found = found.or_else(|| more.lock().unwrap().as_ref().and_then(|find| find(&request.vm)));
            async move { found.ok_or_else(|| ApiError::not_found(format!("no VM {}", request.vm))) }
        });
        get.await.unwrap();
        service.ready().await.unwrap();
        Self { hosts, vms, others, _service: service }
    }

    /// Adds VMs that somebody else plays.
    pub fn also(&self, find: Finds) {
        *self.others.lock().unwrap() = Some(find);
    }

    /// Adds a VM in that state, or changes it; its id.
    pub fn put_vm(&self, name: &str, state: VmState, more: serde_json::Value) -> VmId {
        let id = VmId::new();
        let mut whole = json!({
            "id": id, "name": name, "state": state, "host": "h1", "host_down": false, "image": ImageId::new(),
            "image_name": "debian", "cpus": 1, "memory": 128, "disk": 512, "address": "10.77.0.9",
            "mac": "02:57:0a:4d:00:09", "fqdn": format!("{name}.warren"), "created_at": "2026-01-01T00:00:00Z",
        });
        whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let vm: Vm = serde_json::from_value(whole).unwrap();
        let mut vms = self.vms.lock().unwrap();
        vms.retain(|known| known.name != vm.name);
        vms.push(vm);
        id
    }

    /// The lab has it no more.
    pub fn forget(&self, id: &str) {
        self.hosts.lock().unwrap().retain(|known| known.id.as_str() != id);
    }

    /// Adds a host with that many MiB of free disk, or changes it.
    pub fn put(&self, id: &str, state: HostState, disk: u32) {
        let capacity = |disk| Capacity { cpus: 8, memory: MebiBytes(1024), disk: MebiBytes(disk) };
        let host = Host {
            id: id.parse().unwrap(),
            state,
            capacity: capacity(disk),
            allocated: capacity(0),
            subnet: "10.77.0.0/24".parse().unwrap(),
            vmm: "fake".into(),
            version: "0.1.0".into(),
            kernels: vec![],
            vms: 0,
            last_seen: OffsetDateTime::now_utc(),
        };
        let mut hosts = self.hosts.lock().unwrap();
        hosts.retain(|known| known.id != host.id);
        hosts.push(host);
    }
}

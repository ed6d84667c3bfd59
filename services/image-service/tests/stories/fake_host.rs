//! Hosts without disks: they remember what they were told, and block or fail on demand.

mod controls;
mod registry;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use bus::{Bus, Service};
use contract::{
    ApiError, HostId, ImageId, OperationId,
    agent::{
        Fence, ImageDiscard, ImageExport, ImageHere, ImageInventory, ImagePublish, ImagePush, ImageReclaim,
        ImageRemove, ImageResolve, ImageStage, Inventory, PushStatus, PushedBundle, ResolvedImage, StageStatus,
        StagedImage, StagedKernel, StagingHere, VmKernel,
    },
    host::Empty,
    image::ImageConfig,
    operation::Progress,
};
use tokio::sync::Notify;

use crate::fake_kernels::FakeKernels;
pub use registry::FakeRegistry;

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
    /// Removals are not answered at all.
    hanging: bool,
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
                loop {
                    let changed = host.changed.notified();
                    if !host.state.lock().unwrap().hanging {
                        break;
                    }
                    changed.await;
                }
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

//! Images on this host: staging (download, verify, unpack, write as ext4), publication (one rename) and removal.
//!
//! `staging/<operation-id>/` and `images/<image-id>/` are on one filesystem. A staging is whole once it has a
//! `manifest.json`, which is written last.

mod bundle;
mod cache;
mod download;
mod ext4;
#[doc(hidden)]
pub mod fuzzing;
mod high_water;
mod identity;
mod import;
mod inventory;
mod layer;
mod layout;
mod limits;
mod manifest;
mod options;
mod place;
mod progress;
pub mod promote;
mod pull;
mod push;
mod record;
mod register;
mod registry;
mod source;
mod stage;
mod tool;
mod tree;

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::Duration,
};

use contract::{
    ApiError, ImageId, OperationId,
    agent::{DiscardRequest, Fence, ResolveRequest, ResolvedImage, StageRequest, StageStatus, StagedImage},
    doctor::Check,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

pub use cache::CacheUsage;
pub use high_water::HIGH_WATER;
pub use limits::{ENTRIES_MAX, Limits};
pub use options::{CACHE_MAX, ImageOptions};
pub use promote::{Copied, Copying, Disks};
pub use register::Sources;
pub use registry::{Mirror, parse_mirrors};

use crate::{files, kernel::KernelObjects, upload};
use cache::Cache;
pub(crate) use high_water::HighWater;
use manifest::Resolved;
use progress::Reporter;
use record::{Record, read_record};
use source::Source;
use stage::Staging;

/// The root filesystem's name in an image's directory.
const ROOTFS: &str = "rootfs.ext4";
/// The record that makes a directory whole.
const MANIFEST: &str = "manifest.json";

/// How long a source may take to say what it has: less than the command's deadline, so that the answer says why.
const RESOLVE: Duration = Duration::from_secs(20);

type Outcome = Option<Result<StagedImage, ApiError>>;

/// A staging under way, or ended.
#[derive(Clone)]
struct Task {
    epoch: i64,
    cancel: CancellationToken,
    progress: Reporter,
    outcome: watch::Receiver<Outcome>,
}

/// This host's images.
pub struct ImageStore {
    root: PathBuf,
    options: ImageOptions,
    cache: Arc<Cache>,
    sources: OnceLock<Sources>,
    /// Who keeps the kernels that images take along, once there is somebody.
    kernels: OnceLock<Arc<KernelObjects>>,
    /// Held for map operations only, never across I/O.
    tasks: Mutex<HashMap<OperationId, Task>>,
    pushes: push::Pushes,
    /// Who has the disks of VMs, once there is somebody.
    disks: OnceLock<Weak<dyn Disks>>,
    /// Held while one of the final directories comes, goes, or changes hands: a rename and what is read before it.
    places: Arc<Mutex<()>>,
    /// The highest epoch of a discarded staging: a late command does not begin it again.
    discarded: Mutex<HashMap<OperationId, i64>>,
}

/// The error of a file that cannot be written or read.
fn storage_error(path: &Path, error: &io::Error) -> ApiError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ApiError::resource_exhausted(format!("the host's disk is full: {}", path.display()))
                .hint("remove images with `warren image rm`, or give the host more disk")
        }
        _ => ApiError::internal(format!("{} cannot be used: {error}", path.display())),
    }
}

fn stale(fence: Fence, seen: i64) -> ApiError {
    ApiError::aborted(format!(
        "stale epoch {} for the staging {}: {seen} was seen already",
        fence.epoch, fence.operation
    ))
}

impl ImageStore {
    /// Opens the images below a state directory, and removes what an earlier agent was about to remove. Stagings stay: which
    /// operations go on only the lab knows.
    ///
    /// # Errors
    /// The directories cannot be made or read.
    pub fn open(state_dir: &Path, options: ImageOptions) -> io::Result<Arc<Self>> {
        fs::create_dir_all(state_dir)?;
        let share = files::disk_bytes(state_dir)? / 10;
        let cache_bytes = options.cache_bytes.unwrap_or(CACHE_MAX.min(share));
        let store = Self {
            root: state_dir.to_owned(),
            cache: Cache::open(state_dir, cache_bytes, HighWater::new(state_dir, options.high_water))?,
            options,
            sources: OnceLock::new(),
            kernels: OnceLock::new(),
            tasks: Mutex::default(),
            pushes: push::Pushes::default(),
            disks: OnceLock::new(),
            places: Arc::default(),
            discarded: Mutex::default(),
        };
        fs::create_dir_all(store.root.join("images"))?;
        fs::create_dir_all(store.root.join("staging"))?;
        // An image may hold what not every user of the machine may read; VMMs are given the file itself.
        for dir in ["images", "staging"] {
            fs::set_permissions(store.root.join(dir), fs::Permissions::from_mode(0o700))?;
        }
        store.sweep(Duration::ZERO)?;
        store.cache.trim()?;
        Ok(Arc::new(store))
    }

    /// Makes known who has the disks of this host's VMs; the first who comes is.
    pub fn attach(&self, disks: Weak<dyn Disks>) {
        if self.disks.set(disks).is_err() {
            tracing::warn!("the disks of VMs are somebody's already");
        }
    }

    /// From now on files come from there, too; said once.
    pub fn take_from(&self, sources: Sources) {
        if self.sources.set(sources).is_err() {
            tracing::warn!("where files for images come from was said already");
        }
    }

    /// From now on kernels come and go with images; said once.
    pub fn keep_kernels(&self, kernels: Arc<KernelObjects>) {
        if self.kernels.set(kernels).is_err() {
            tracing::warn!("who keeps kernels was said already");
        }
    }

    fn kernels(&self) -> Result<Arc<KernelObjects>, ApiError> {
        self.kernels.get().cloned().ok_or_else(|| ApiError::unavailable("the host does not keep kernels yet"))
    }

    /// Removes the kernel that came with what an operation staged, if one did.
    async fn unstage_kernel(&self, operation: OperationId) -> Result<(), ApiError> {
        let Some(kernels) = self.kernels.get().cloned() else { return Ok(()) };
        let gone = tokio::task::spawn_blocking(move || kernels.unstage(operation)).await;
        gone.map_err(|error| ApiError::internal(format!("a removal failed: {error}")))?
    }

    fn sources(&self) -> Sources {
        self.sources.get().cloned().unwrap_or_default()
    }

    fn staging(&self, operation: OperationId) -> PathBuf {
        self.root.join("staging").join(operation.to_string())
    }

    fn published(&self, image: ImageId) -> PathBuf {
        self.root.join("images").join(image.to_string())
    }

    /// A published image's root filesystem.
    ///
    /// # Errors
    /// `not_found`.
    pub fn rootfs(&self, image: ImageId) -> Result<PathBuf, ApiError> {
        let path = self.published(image).join(ROOTFS);
        if path.exists() {
            Ok(path)
        } else {
            Err(ApiError::not_found(format!("the image {image} is not on this host")))
        }
    }

    /// What a published image is.
    fn image(&self, image: ImageId) -> Option<StagedImage> {
        read_record(&self.published(image)).map(|record| record.image)
    }

    /// Finds out what a source stands for now.
    ///
    /// # Errors
    /// The source is not there, refuses, or offers nothing for this machine; `deadline_exceeded` when it takes too long.
    pub async fn resolve(&self, request: &ResolveRequest) -> Result<ResolvedImage, ApiError> {
        let find = async {
            let source = Source::open(&request.source, &self.options).await?;
            manifest::resolve(&source, &self.options.limits).await
        };
        let late = |_| {
            ApiError::deadline_exceeded(format!("{} has not answered in {} s", request.source, RESOLVE.as_secs()))
                .hint("is its registry up, and reachable from the host?")
        };
        let resolved = tokio::time::timeout(RESOLVE, find).await.map_err(late)??;
        let layers = resolved.layers.iter().map(|(layer, _)| layer.size).collect();
        let Resolved { digest, architecture, kernel, .. } = resolved;
        Ok(ResolvedImage { digest, architecture, layers, kernel })
    }

    /// Starts a staging, or joins it, and waits a while for its end.
    ///
    /// # Errors
    /// `aborted` for a stale epoch.
    pub async fn stage(self: &Arc<Self>, request: &StageRequest) -> Result<StageStatus, ApiError> {
        let mut task = self.task(request)?;
        let ended = task.outcome.wait_for(Option::is_some);
        drop(tokio::time::timeout(Duration::from_millis(request.wait_ms), ended).await);
        let outcome = task.outcome.borrow().clone();
        Ok(match outcome {
            None => {
                let (phase, progress) = task.progress.now();
                StageStatus::Running { phase, progress }
            }
            Some(Ok(image)) => StageStatus::Done { image },
            Some(Err(error)) => StageStatus::Failed { error },
        })
    }

    fn task(self: &Arc<Self>, request: &StageRequest) -> Result<Task, ApiError> {
        let fence = request.fence;
        let mut tasks = self.tasks();
        // With the tasks in hand: a discard notes its epoch before it looks for one.
        if let Some(seen) = self.discarded().get(&fence.operation).filter(|seen| fence.epoch <= **seen) {
            return Err(stale(fence, *seen));
        }
        if let Some(task) = tasks.get_mut(&fence.operation) {
            if fence.epoch < task.epoch {
                return Err(stale(fence, task.epoch));
            }
            task.epoch = fence.epoch;
            return Ok(task.clone());
        }
        let (sender, outcome) = watch::channel(None);
        let (cancel, progress) = (CancellationToken::new(), Reporter::default());
        let staging = Staging {
            operation: fence.operation,
            dir: self.staging(fence.operation),
            source: request.source.clone(),
            images: self.clone(),
            options: self.options.clone(),
            cache: self.cache.clone(),
            progress: progress.clone(),
            cancel: cancel.clone(),
        };
        let task = Task { epoch: fence.epoch, cancel, progress, outcome };
        tasks.insert(fence.operation, task.clone());
        let store = self.clone();
        tokio::spawn(
            async move {
                sender.send_replace(Some(store.begin(&staging).await));
            }
            .in_current_span(),
        );
        Ok(task)
    }

    /// Finds what an earlier agent finished, or does it; a failure leaves no directory.
    async fn begin(&self, staging: &Staging) -> Result<StagedImage, ApiError> {
        let (images, operation, dir) = (staging.images.clone(), staging.operation, &staging.dir);
        let fresh = staging.blocking(move |dir, _, _| {
            let finished = images.finished(operation);
            if finished.is_none() {
                upload::fresh(dir).map_err(|error| storage_error(dir, &error))?;
            }
            Ok(finished)
        });
        if let Some(image) = fresh.await? {
            return Ok(image);
        }
        let outcome = staging.run().await;
        if let Err(error) = &outcome {
            tracing::info!(operation.id = %staging.operation, %error, "a staging failed");
            remove(dir.clone()).await?;
            self.unstage_kernel(staging.operation).await?;
        }
        self.trim_cache().await;
        outcome
    }

    /// What a staging needed may go now, should there be too much.
    async fn trim_cache(&self) {
        let cache = self.cache.clone();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || cache.trim()).await {
            tracing::warn!(%error, "the cache of blobs cannot be trimmed");
        }
    }

    /// What the cache of blobs holds. Blocking.
    ///
    /// # Errors
    /// Its directory cannot be read.
    pub fn cache_usage(&self) -> io::Result<CacheUsage> {
        self.cache.usage()
    }

    /// The image an operation staged or published earlier, if it did.
    fn finished(&self, operation: OperationId) -> Option<StagedImage> {
        let staged = read_record(&self.staging(operation));
        let published = || {
            let images = files::subdirectories(&self.root.join("images")).ok()?;
            images.iter().find_map(|dir| read_record(dir).filter(|record| record.is_of(operation)))
        };
        staged.or_else(published).map(|record| record.image)
    }

    /// What `doctor` says of images: their room, the programs they need, and whether registries can be asked. Blocking.
    pub fn doctor(&self) -> Vec<Check> {
        let tools = tool::checks(self.options.docker_config.as_deref());
        std::iter::once(self.room()).chain(tools).chain(registry::no_certificates()).collect()
    }

    fn room(&self) -> Check {
        const NAME: &str = "images";
        let usage = match self.cache.usage() {
            Ok(usage) => usage,
            Err(error) => {
                return Check::fail(NAME, format!("the cache of blobs cannot be read: {error}"))
                    .mend("look into the filesystem it is on (dmesg), then restart the host-agent");
            }
        };
        let (blobs, mib, limit) = (usage.blobs, usage.bytes >> 20, self.cache.limit() >> 20);
        let kept = format!("{blobs} blobs of {mib} MiB are kept for the next pull, {limit} MiB at most");
        match self.cache.high_water().check() {
            Ok(()) => Check::pass(NAME, kept),
            Err(error) => Check::warn(NAME, format!("no image can be pulled: {}; {kept}", error.message))
                .mend("delete VMs or images, or give the state directory more room"),
        }
    }

    /// Ends a staging, or a push, and removes its directory.
    ///
    /// # Errors
    /// `aborted` for a stale epoch, or the directory cannot be removed.
    pub async fn discard(&self, request: &DiscardRequest) -> Result<(), ApiError> {
        let fence = request.fence;
        // First: what begins from now on is refused, and what began before is found.
        {
            let mut discarded = self.discarded();
            let seen = discarded.entry(fence.operation).or_insert(fence.epoch);
            *seen = (*seen).max(fence.epoch);
        }
        self.pushes.end(fence).await?;
        let task = self.tasks().get(&fence.operation).cloned();
        if let Some(mut task) = task {
            if fence.epoch < task.epoch {
                return Err(stale(fence, task.epoch));
            }
            task.cancel.cancel();
            // Its directory must not be written to any more when it is removed.
            drop(task.outcome.wait_for(Option::is_some).await);
        }
        remove(self.staging(fence.operation)).await?;
        // Until here whoever comes under a higher epoch joined what has ended, and began nothing in that directory.
        self.tasks().remove(&fence.operation);
        self.unstage_kernel(fence.operation).await
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, HashMap<OperationId, Task>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn discarded(&self) -> std::sync::MutexGuard<'_, HashMap<OperationId, i64>> {
        self.discarded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a directory off the async threads.
async fn remove(dir: PathBuf) -> Result<(), ApiError> {
    let path = dir.clone();
    let removed = tokio::task::spawn_blocking(move || files::remove_dir(&dir)).await;
    let removed = removed.map_err(|error| ApiError::internal(format!("a removal failed: {error}")))?;
    removed.map_err(|error| storage_error(&path, &error))
}

//! The **objects**: kernels of the lab that this host has, each a directory under its id: `image` (the file as it was handed in), `modules/…`
//! as below `lib/modules/<release>`, and `manifest.json`, which makes it whole. Staged, published by one rename, sent to other hosts, removed.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bus::{Bus, ByteStream};
use contract::{
    ApiError, KernelId, OperationId,
    agent::{
        DiscardRequest, Fence, PublishKernelRequest, RemoveKernelRequest, SendKernelRequest, StageKernelRequest,
        StageKernelSource, StageKernelStatus, StagedKernel, VmKernel,
    },
    operation::Progress,
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{
    BootFiles, carrying, identity,
    making::Making,
    package,
    staging::{Staging, storage_error},
};
use crate::{
    files::{self, chain},
    image::{HIGH_WATER, HighWater},
    tasks::{Reins, Tasks},
};

/// The only architecture there is (OCI's word for it).
pub(super) const ARCHITECTURE: &str = "amd64";
/// The record that makes a directory whole.
pub(super) const MANIFEST: &str = "manifest.json";
/// The kernel's file, and the directory of its modules, as [`super::offer::Parts`] keeps them.
pub(super) const IMAGE: &str = "image";
pub(super) const MODULES: &str = "modules";
/// How the directories of stagings, and of what is being removed, begin.
pub(super) const STAGING: &str = ".staging-";
pub(super) const TRASH: &str = ".trash-";
/// Stagings nobody asked for this long are leaks.
const STALE: Duration = Duration::from_secs(24 * 3600);
/// How long a host waits until another takes what it sends: longer than a command to that host takes.
const SEND_PATIENCE: Duration = Duration::from_secs(60);

/// What stands in `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub operation: OperationId,
    pub kernel: StagedKernel,
}

/// How kernels are kept.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// Directories whose files may be imported.
    pub allowed: Vec<PathBuf>,
    /// How full the disk may become by kernels, in percent; 100: as full as can be.
    pub high_water: u8,
}

impl Default for KernelOptions {
    fn default() -> Self {
        Self { allowed: Vec::new(), high_water: HIGH_WATER }
    }
}

/// This host's kernels of the lab.
pub struct KernelObjects {
    pub(super) root: PathBuf,
    state_dir: PathBuf,
    options: KernelOptions,
    high_water: HighWater,
    pub(super) tasks: Tasks<StagedKernel>,
}

/// Does what blocks.
pub(super) async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::internal(format!("work on a kernel failed: {error}")))?
}

impl KernelObjects {
    /// Opens the kernels below a state directory and removes what nobody will ask for again.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(state_dir: &Path, options: KernelOptions) -> io::Result<Arc<Self>> {
        let root = state_dir.join("kernel-objects");
        fs::create_dir_all(&root)?;
        for entry in fs::read_dir(&root)? {
            let entry = entry?;
            let name = entry.file_name();
            let age = SystemTime::now().duration_since(entry.metadata()?.modified()?).unwrap_or_default();
            let name = name.as_encoded_bytes();
            if name.starts_with(TRASH.as_bytes()) || (name.starts_with(STAGING.as_bytes()) && age > STALE) {
                files::remove_dir(&entry.path())?;
            }
        }
        let high_water = HighWater::new(state_dir, options.high_water);
        Ok(Arc::new(Self { root, state_dir: state_dir.to_owned(), options, high_water, tasks: Tasks::default() }))
    }

    fn staging(&self, operation: OperationId) -> PathBuf {
        self.root.join(format!("{STAGING}{operation}"))
    }

    fn published(&self, kernel: KernelId) -> PathBuf {
        self.root.join(kernel.to_string())
    }

    /// Starts a staging, or joins it, and waits a while for its end.
    ///
    /// # Errors
    /// `aborted` for a stale epoch.
    pub async fn stage(
        self: &Arc<Self>,
        bus: &Bus,
        request: &StageKernelRequest,
    ) -> Result<StageKernelStatus, ApiError> {
        let task = self.tasks.begin(request.fence, |reins| self.clone().begin(bus.clone(), request.clone(), reins))?;
        Ok(match task.wait(Duration::from_millis(request.wait_ms)).await {
            Err(done) => StageKernelStatus::Running { progress: Progress { done, total: 0 } },
            Ok(Ok(kernel)) => StageKernelStatus::Done { kernel },
            Ok(Err(error)) => {
                // What another host sent can be sent again, for the same claim.
                if error.retryable || request.digest.is_some() {
                    self.tasks.forget(request.fence.operation);
                }
                StageKernelStatus::Failed { error }
            }
        })
    }

    /// Finds what an earlier agent finished, or does it; a failure leaves no directory.
    async fn begin(
        self: Arc<Self>,
        bus: Bus,
        request: StageKernelRequest,
        reins: Reins,
    ) -> Result<StagedKernel, ApiError> {
        let operation = request.fence.operation;
        let store = self.clone();
        if let Some(kernel) = off_the_runtime(move || Ok(store.finished(operation))).await? {
            return Ok(kernel);
        }
        let staging = Staging {
            operation,
            dir: self.staging(operation),
            digest: request.digest,
            allowed: self.options.allowed.clone(),
            high_water: self.high_water.clone(),
            reins,
        };
        let from_host = staging.digest.is_some();
        let outcome = match (request.source, from_host) {
            (StageKernelSource::Path(path), _) => off_the_runtime(move || staging.run_path(&path)).await,
            (StageKernelSource::Stream(session), false) => carrying::uploaded(&bus, session, staging).await,
            (StageKernelSource::Stream(session), true) => carrying::receive(&bus, session, staging).await,
        };
        if let Err(error) = &outcome {
            tracing::info!(operation.id = %operation, %error, "the staging of a kernel failed");
        }
        outcome
    }

    /// The kernel an operation staged or published earlier, if it did. Blocking.
    fn finished(&self, operation: OperationId) -> Option<StagedKernel> {
        let staged = read_record(&self.staging(operation));
        let published = || {
            let all = files::subdirectories(&self.root).ok()?;
            all.iter().find_map(|dir| read_record(dir).filter(|record| record.operation == operation))
        };
        staged.or_else(published).map(|record| record.kernel)
    }

    /// Makes a staged kernel visible under its id; a repeat finds it there. Where another operation brought the same kernel, that one is taken, and
    /// what this one staged stays until it is discarded: should the other be taken back, there is something to publish still.
    ///
    /// # Errors
    /// `failed_precondition` when nothing whole is staged.
    pub async fn publish(self: &Arc<Self>, request: PublishKernelRequest) -> Result<StagedKernel, ApiError> {
        let (store, operation) = (self.clone(), request.fence.operation);
        let kernel = off_the_runtime(move || store.rename(operation, request.kernel)).await?;
        self.tasks.forget(operation);
        Ok(kernel)
    }

    fn rename(&self, operation: OperationId, kernel: KernelId) -> Result<StagedKernel, ApiError> {
        let (staged, published) = (self.staging(operation), self.published(kernel));
        let there = read_record(&published);
        if let Some(record) = there.as_ref().filter(|record| record.operation == operation) {
            return Ok(record.kernel.clone());
        }
        let record = read_record(&staged).ok_or_else(|| {
            ApiError::failed_precondition(format!("no kernel is staged for the operation {operation}"))
        })?;
        let storage = |error: io::Error| storage_error(&published, &error);
        // Of a publication that did not come to its end, or of another operation's that brings the same.
        let same = there.is_some_and(|there| there.kernel.digest == record.kernel.digest);
        if same && hashed(&published, &record.kernel).is_ok_and(|digest| digest == record.kernel.digest) {
            return Ok(record.kernel);
        }
        // What is there is not whole, or not this kernel: no VM can boot it.
        files::remove_dir(&published).map_err(storage)?;
        fs::rename(&staged, &published).map_err(storage)?;
        runtime::fault::point("agent/kernel.publish/renamed");
        files::sync_parent(&published).map_err(storage)?;
        Ok(record.kernel)
    }

    /// Ends a staging and removes its directory.
    ///
    /// # Errors
    /// `aborted` for a stale epoch, or the directory cannot be removed.
    pub async fn discard(&self, request: &DiscardRequest) -> Result<(), ApiError> {
        let Fence { operation, .. } = request.fence;
        self.tasks.end(request.fence).await?;
        let dir = self.staging(operation);
        off_the_runtime(move || files::remove_dir(&dir).map_err(|error| storage_error(&dir, &error))).await
    }

    /// Removes a published kernel: first out of sight, then for good.
    ///
    /// # Errors
    /// The files cannot be removed.
    pub async fn remove(&self, request: &RemoveKernelRequest) -> Result<(), ApiError> {
        let (dir, trash) = (self.published(request.kernel), self.root.join(format!("{TRASH}{}", request.kernel)));
        off_the_runtime(move || {
            match fs::rename(&dir, &trash) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(storage_error(&dir, &error)),
                _ => {}
            }
            files::remove_dir(&trash).map_err(|error| storage_error(&trash, &error))
        })
        .await
    }

    /// Opens a byte stream and sends a kernel on it to whoever accepts it.
    ///
    /// # Errors
    /// `not_found`, or the bus is closed.
    pub async fn send(self: &Arc<Self>, bus: &Bus, request: &SendKernelRequest) -> Result<(), ApiError> {
        let dir = self.published(request.kernel);
        let record = read_record(&dir).ok_or_else(|| missing(request.kernel))?;
        let stream = ByteStream::open_within(bus, request.session, SEND_PATIENCE).await?;
        let id = request.kernel;
        tokio::task::spawn_blocking(move || {
            let modules_dir = dir.join(MODULES);
            let listed = if modules_dir.is_dir() { identity::files_below(&modules_dir) } else { Ok(Vec::new()) };
            let sent = listed.and_then(|modules| {
                carrying::send(stream, &dir.join(IMAGE), &modules_dir, &modules, &record.kernel.release)
            });
            match sent {
                Ok(()) => tracing::info!(kernel.id = %id, "a kernel was sent to another host"),
                Err(error) => tracing::warn!(kernel.id = %id, %error, "a kernel was not sent to another host"),
            }
        });
        Ok(())
    }

    /// Stages the kernel in an archive that came with an image, under the operation that stages this. Blocking.
    ///
    /// # Errors
    /// It is none, cannot be read to its end, the disk is full, or it was called off.
    pub(crate) fn take(
        &self,
        operation: OperationId,
        archive: impl Read,
        cancel: &CancellationToken,
    ) -> Result<StagedKernel, ApiError> {
        let staging = Staging {
            operation,
            dir: self.staging(operation),
            digest: None,
            allowed: Vec::new(),
            high_water: self.high_water.clone(),
            reins: Reins::of(cancel.clone()),
        };
        staging.run_from(archive)
    }

    /// Removes what an operation staged, if it did. Blocking.
    ///
    /// # Errors
    /// The directory cannot be removed.
    pub(crate) fn unstage(&self, operation: OperationId) -> Result<(), ApiError> {
        let dir = self.staging(operation);
        files::remove_dir(&dir).map_err(|error| storage_error(&dir, &error))
    }

    /// Writes a kernel of this host as one archive, the same kernel as the same bytes. Blocking.
    ///
    /// # Errors
    /// It is not here, a file cannot be read or written, or it was called off.
    pub(crate) fn pack(&self, kernel: &VmKernel, into: &Path, cancel: &CancellationToken) -> Result<(), ApiError> {
        self.check(kernel)?;
        let dir = self.published(kernel.id);
        let modules_dir = dir.join(MODULES);
        let written = || -> io::Result<()> {
            let modules = if modules_dir.is_dir() { identity::files_below(&modules_dir)? } else { Vec::new() };
            let to = Leashed { file: fs::File::create(into)?, cancel };
            carrying::pack(to, &dir.join(IMAGE), &modules_dir, &modules, &kernel.release).map(drop)
        };
        written().map_err(|error| match cancel.is_cancelled() {
            true => ApiError::cancelled("the packing was called off"),
            false => storage_error(into, &error),
        })
    }

    /// What a VM boots from that was given this kernel. Blocking.
    ///
    /// # Errors
    /// It is not here, or cannot be used any more.
    pub fn boot_files(&self, kernel: &VmKernel, guest_agent: &Path) -> Result<BootFiles, ApiError> {
        let dir = self.published(kernel.id);
        let record = read_record(&dir).filter(|record| record.kernel.digest == kernel.digest);
        let record = record.ok_or_else(|| missing(kernel.id))?;
        let made = Making::of_digest(&self.state_dir, &record.kernel.digest, guest_agent).and_then(|making| {
            if making.made()?.is_none() {
                let modules = dir.join(MODULES);
                let modules = modules.is_dir().then_some(modules.as_path());
                let (vmlinux, modules, release) = package::looked_at(&dir.join(IMAGE), modules, None, &dir)?;
                making.make(&vmlinux, &modules, guest_agent, &release)?;
            }
            Ok(making.files(record.kernel.release.clone()))
        });
        made.map_err(|error| {
            ApiError::failed_precondition(format!("the kernel {} cannot be used: {}", kernel.release, chain(&error)))
                .hint(format!("look into {} on that host", dir.display()))
        })
    }

    /// Whether it is here.
    ///
    /// # Errors
    /// `failed_precondition`: it is not.
    pub fn check(&self, kernel: &VmKernel) -> Result<(), ApiError> {
        match read_record(&self.published(kernel.id)) {
            Some(record) if record.kernel.digest == kernel.digest => Ok(()),
            _ => Err(missing(kernel.id)),
        }
    }

    /// How many there are, and those whose record cannot be read. Blocking.
    pub fn looked_through(&self) -> (usize, Vec<PathBuf>) {
        let dirs = files::subdirectories(&self.root).unwrap_or_default();
        let broken: Vec<PathBuf> = dirs.iter().filter(|dir| read_record(dir).is_none()).cloned().collect();
        (dirs.len() - broken.len(), broken)
    }
}

/// A file that is written until that is called off.
struct Leashed<'a> {
    file: fs::File,
    cancel: &'a CancellationToken,
}

impl Write for Leashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("called off"));
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn missing(kernel: KernelId) -> ApiError {
    ApiError::failed_precondition(format!("the kernel {kernel} is not on this host"))
        .hint("`warren kernel show` tells which hosts have it; importing it again brings it back")
}

/// The digest of the files that stand in a directory. Blocking; the files of one kernel are read in less than a second.
fn hashed(dir: &Path, kernel: &StagedKernel) -> io::Result<String> {
    let modules_dir = dir.join(MODULES);
    let modules = if modules_dir.is_dir() { identity::files_below(&modules_dir)? } else { Vec::new() };
    let modules = modules.iter().map(String::as_str);
    let (digest, _) = identity::of(&kernel.release, ARCHITECTURE, &dir.join(IMAGE), &modules_dir, modules)?;
    Ok(digest)
}

pub(super) fn read_record(dir: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(dir.join(MANIFEST)).ok()?).ok()
}

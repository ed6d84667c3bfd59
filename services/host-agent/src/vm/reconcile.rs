//! Reconciling: kernel objects and files of this host beside the VMs that are here, and beside the lab's rows. What nobody owns
//! is named, and removed where that loses nothing; what is not Warren's is never touched.
//!
//! Objects are listed before owners: an object whose owner is being made or removed meanwhile is never taken for a leak.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use contract::{
    ApiError, OperationId, VmId,
    agent::{Fence, ReclaimRequest, VmCommand},
    doctor::{Check, ExamineRequest, Findings, Leak, LeakKind},
};
use nix::sys::signal::Signal;

use super::{Vms, checks};
use crate::{handles::Found, net::Tap, vmm::process::Process};

/// How often this host looks for what nobody owns.
const EVERY: Duration = Duration::from_secs(60);
/// What an agent that died was about to remove is removed when nobody can be at it any more.
const TRASH_KEPT: Duration = Duration::from_secs(600);
/// Files younger than this may belong to a row that is just being written.
const SETTLED: Duration = Duration::from_secs(60);

/// Removes what nobody owns, for ever.
pub async fn run(vms: Arc<Vms>) {
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        vms.deps.lab.retry_pool();
        let here = vms.clone();
        let round = move || {
            if let Err(error) = here.deps.images.sweep(TRASH_KEPT) {
                tracing::warn!(%error, "removed images still take disk space");
            }
            here.strays(true)
        };
        match tokio::task::spawn_blocking(round).await {
            Ok(leaks) => {
                for leak in leaks {
                    tracing::warn!(?leak, "an object nobody owns");
                }
            }
            Err(error) => tracing::error!(%error, "the host was not reconciled"),
        }
    }
}

fn leak(kind: LeakKind, what: impl Into<String>) -> Leak {
    Leak { kind, what: what.into(), fixed: false, why: None }
}

/// Removes the object, if it is to be, and notes how that went.
fn mended<E: std::fmt::Display>(mut leak: Leak, fix: bool, remove: impl FnOnce() -> Result<(), E>) -> Leak {
    if fix {
        match remove() {
            Ok(()) => leak.fixed = true,
            Err(error) => leak.why = Some(error.to_string()),
        }
    }
    leak
}

impl Vms {
    fn here(&self) -> HashSet<VmId> {
        self.tasks().keys().copied().collect()
    }

    /// Kernel objects of VMs that are not here: processes, taps, control groups. Blocking.
    pub fn strays(&self, fix: bool) -> Vec<Leak> {
        let mut leaks = Vec::new();
        let processes = self.processes().unwrap_or_default();
        let taps = self.deps.lab.taps().unwrap_or_default();
        let groups = self.deps.cgroups.as_ref().map(|cgroups| cgroups.all()).unwrap_or_default();
        let here = self.here();
        for vm in processes.into_iter().filter(|vm| !here.contains(vm)) {
            let Some(process) = Process::find(vm) else { continue };
            let found = leak(LeakKind::Process, format!("VMM {} of {vm}", process.identity.pid));
            leaks.push(mended(found, fix, || {
                process.signal(Signal::SIGKILL);
                Ok::<_, io::Error>(())
            }));
        }
        for tap in self.stray_taps(taps, &here) {
            leaks.push(mended(leak(LeakKind::Tap, &tap), fix, || self.deps.lab.remove_tap(&tap)));
        }
        for vm in groups.into_iter().filter(|vm| !here.contains(vm)) {
            let removed = || self.deps.cgroups.as_ref().map_or(Ok(()), |cgroups| cgroups.remove(vm));
            leaks.push(mended(leak(LeakKind::Cgroup, vm.to_string()), fix, removed));
        }
        leaks
    }

    /// Those of the taps that are neither the pool's nor of a VM that is here.
    fn stray_taps(&self, taps: Vec<Tap>, here: &HashSet<VmId>) -> Vec<String> {
        let lab = &self.deps.lab;
        // A VM whose handles are damaged has a tap nobody here can name: the guard tells whose it is.
        let owned = |tap: &Tap| lab.knows(&tap.name) || here.iter().any(|vm| tap.is_of(*vm));
        let strays: Vec<_> = taps.into_iter().filter(|tap| !owned(tap)).map(|tap| tap.name).collect();
        if strays.is_empty() {
            return strays;
        }
        // One that was being removed has gone from the kernel before it was forgotten here, so only what is still there is a stray.
        let still: HashSet<String> = lab.taps().unwrap_or_default().into_iter().map(|tap| tap.name).collect();
        strays.into_iter().filter(|tap| still.contains(tap)).collect()
    }

    /// The VMs whose VMM works below this host's state directory, whoever started it.
    fn processes(&self) -> io::Result<Vec<VmId>> {
        let root = self.deps.state_dir.join("vms");
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            let Ok(dir) = fs::read_link(format!("/proc/{pid}/cwd")) else { continue };
            let Ok(below) = dir.strip_prefix(&root) else { continue };
            let name = below.components().next().map(|part| part.as_os_str().to_string_lossy()).unwrap_or_default();
            let Ok(vm) = name.trim_end_matches(" (deleted)").parse::<VmId>() else { continue };
            if Process::find(vm).is_some_and(|process| process.identity.pid == pid) {
                found.push(vm);
            }
        }
        Ok(found)
    }

    /// Compares this host with the lab's rows, and checks it.
    pub async fn examine(self: &Arc<Self>, request: ExamineRequest) -> Findings {
        let (vms, fix) = (self.clone(), request.fix);
        let rows = request.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let mut leaks = vms.strays(fix);
            leaks.extend(vms.files_without_rows(&rows));
            (checks::all(vms.deps()), leaks)
        });
        let (checks, mut leaks) = match looked.await {
            Ok(found) => found,
            Err(error) => (vec![Check::fail("doctor", format!("the examination failed: {error}"))], Vec::new()),
        };
        for leak in leaks.iter_mut().filter(|leak| leak.kind == LeakKind::Vm && fix) {
            let Ok(vm) = leak.what.parse::<VmId>() else { continue };
            let epoch = self.observations().iter().find(|seen| seen.vm == vm).map_or(0, |seen| seen.epoch);
            // The agent removes in its own name, under the epoch it has seen.
            let fence = Fence { operation: OperationId::new(), epoch };
            match self.remove(VmCommand { fence, vm, wait_ms: 0 }).await {
                Ok(()) => (leak.fixed, leak.why) = (true, None),
                Err(error) => leak.why = Some(error.message),
            }
        }
        Findings { checks, leaks, clock_ms: Some(super::owner::now_ms()) }
    }

    /// Removes the directory of an image that has no row. VMs of this host that the lab has lost keep what their disks build on.
    ///
    /// # Errors
    /// `failed_precondition` when a VM's disk builds on it, or it is not any more what the request says.
    pub async fn reclaim(&self, request: ReclaimRequest) -> Result<(), ApiError> {
        let all =
            self.deps.dirs.all().map_err(|error| ApiError::internal(format!("the VMs cannot be listed: {error}")))?;
        for (vm, found) in &all {
            match found {
                Found::Whole(handles) if handles.spec.image == request.image => {
                    return Err(ApiError::failed_precondition(format!(
                        "the disk of the VM {vm} on this host builds on it"
                    )));
                }
                Found::Damaged(why) => {
                    let may = format!("the disk of the VM {vm} on this host may build on it: {why}");
                    return Err(
                        ApiError::failed_precondition(may).hint("`warren doctor` tells what to do about that VM")
                    );
                }
                Found::Whole(_) | Found::Nothing => {}
            }
        }
        self.deps.images.reclaim(&request).await
    }

    fn files_without_rows(&self, rows: &ExamineRequest) -> Vec<Leak> {
        let mut leaks = Vec::new();
        let id = |path: &Path| path.file_name()?.to_str()?.parse::<VmId>().ok();
        let mut vms: HashSet<VmId> =
            settled(&self.deps.state_dir.join("vms")).iter().filter_map(|path| id(path)).collect();
        // The lab said so itself, however young their files are.
        vms.extend(self.orphans().into_iter().filter(|vm| self.deps.dirs.dir(*vm).exists()));
        for vm in vms.into_iter().filter(|vm| !rows.vms.contains(vm)) {
            let mut found = leak(LeakKind::Vm, vm.to_string());
            found.why = Some(format!(
                "the lab has no row of it; look into {} before `--fix` removes it with its disk",
                self.deps.dirs.dir(vm).display()
            ));
            leaks.push(found);
        }
        for path in settled(&self.deps.state_dir.join("disks")) {
            let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if !rows.disks.iter().any(|disk| disk.as_str() == name) {
                let mut found = leak(LeakKind::Disk, path.display().to_string());
                found.why = Some("it may hold somebody's data: look into it and remove it by hand".to_owned());
                leaks.push(found);
            }
        }
        for path in settled(&self.deps.state_dir.join("images")) {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if !rows.images.iter().any(|image| image.to_string() == name) {
                let mut found = leak(LeakKind::Image, path.display().to_string());
                found.why = Some("`warren image gc` removes it, or says why it must not".to_owned());
                leaks.push(found);
            }
        }
        leaks
    }
}

/// What is in a directory, hidden ones left out, and has not been renamed or changed for a while.
fn settled(dir: &Path) -> Vec<std::path::PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let old = |path: &Path| {
        fs::symlink_metadata(path).is_ok_and(|metadata| {
            let changed = Duration::from_secs(u64::try_from(metadata.ctime()).unwrap_or_default());
            now.saturating_sub(changed) > SETTLED
        })
    };
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let visible = entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    visible.map(|entry| entry.path()).filter(|path| old(path)).collect()
}

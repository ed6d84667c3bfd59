//! Starting a VMM, and following it and its guest.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use contract::{ApiError, agent::Fence, deadline};

use super::{
    Deps,
    owner::{Event, Owner, Running, internal, now_ms},
};
use crate::{
    capability::Site,
    files::{self, chain},
    guest::{Guest, Road},
    handles::{Handles, VmmHandle},
    usage::Base,
    vmm::{
        Launch,
        jail::{self, Jail},
        names,
        process::{self, Process},
    },
};

impl Owner {
    pub(super) async fn boot(&mut self, fence: Fence) -> Result<(), ApiError> {
        self.admit(fence)?;
        if self.running.is_some() {
            return Ok(());
        }
        let Some(handles) = self.handles.as_mut().filter(|handles| handles.provisioned) else {
            return Err(ApiError::failed_precondition(format!("the VM {} is not provisioned on this host", self.vm)));
        };
        let boot = now_ms();
        handles.ended = None;
        handles.vmm = Some(VmmHandle::new(boot));
        let known = handles.clone();
        self.save()?;
        runtime::fault::point("agent/vm.boot/before-spawn");
        let (deps, dir) = (self.deps.clone(), self.deps.dirs.dir(self.vm));
        let spawned = tokio::task::spawn_blocking(move || spawn(&deps, &dir, &known));
        let (process, base) = match spawned.await.map_err(|error| internal("the VMM's start failed", error)).flatten() {
            Ok(process) => process,
            Err(error) => {
                if let Some(handles) = &mut self.handles {
                    handles.vmm = None;
                }
                self.with_site(|capabilities, site| capabilities.after_stop(site));
                self.save()?;
                return Err(error);
            }
        };
        runtime::fault::point("agent/vm.boot/spawned");
        if let Some(vmm) = self.handles.as_mut().and_then(|handles| handles.vmm.as_mut()) {
            vmm.process = Some(process.identity);
            vmm.base = base;
        }
        // Watched before it is recorded: a full disk must not lose a running VMM.
        self.watch(process, boot, false);
        self.save()?;
        runtime::fault::point("agent/vm.boot/recorded");
        Ok(())
    }

    /// Follows a running VMM: its end, and its guest's readiness.
    pub(super) fn watch(&mut self, process: Process, boot: u64, ready: bool) {
        let process = Arc::new(process);
        let address = self.handles.as_ref().map(|handles| handles.spec.address.addr());
        let road = address.map(|address| Road { lab: self.deps.lab.clone(), address });
        let guest = Guest::connect(self.deps.dirs.dir(self.vm), names::CHANNEL, road);
        let (watched, events) = (process.clone(), self.events.0.clone());
        tokio::spawn(async move {
            let exit = watched.wait().await;
            // Nobody listens once the VM is removed.
            drop(events.send(Event::Ended(boot, exit)));
        });
        let (asked, events) = (guest.clone(), self.events.0.clone());
        let age = Duration::from_millis(now_ms().saturating_sub(boot));
        let readiness = tokio::spawn(async move {
            if ready {
                return;
            }
            let event = match tokio::time::timeout(deadline::BOOT.saturating_sub(age), asked.ready()).await {
                Ok(facts) => Event::Ready(boot, facts),
                Err(_) => Event::NotReady(boot),
            };
            drop(events.send(event));
        });
        self.guest.send_replace(Some(guest.clone()));
        let readiness = readiness.abort_handle();
        self.running = Some(Running { process, guest, boot, readiness, stopper: None, condemned: None });
        self.with_site(|capabilities, site| capabilities.after_boot(site));
    }
}

/// Makes everything what the VM is to be now, and starts its VMM; what its counters showed before. Blocking.
fn spawn(deps: &Deps, dir: &Path, handles: &Handles) -> Result<(Process, Base), ApiError> {
    // One that was spawned and not recorded is taken, never doubled.
    if let Some(process) = Process::find(handles.spec.id) {
        return Ok((process, handles.vmm.as_ref().map(|vmm| vmm.base).unwrap_or_default()));
    }
    let kernel = deps.kernels.get(handles.spec.kernel.as_ref(), handles.spec.features.kernel.as_ref())?;
    let mut launch = Launch {
        spec: handles.spec.clone(),
        dir: dir.to_owned(),
        disk: handles.disk.clone(),
        backing: (handles.disk.format == "qcow2").then(|| deps.images.rootfs(handles.spec.image)).transpose()?,
        vmlinux: kernel.vmlinux,
        initramfs: kernel.initramfs,
        data_disks: Vec::new(),
    };
    let site = Site { spec: &handles.spec, dir, tap: &handles.tap };
    super::provision::refresh(deps, site, &mut launch)?;
    jail::make_run_dir(&dir.join(names::RUN)).map_err(|error| internal("the VMM's directory cannot be made", error))?;
    for socket in [names::CHANNEL, names::MONITOR, names::CONSOLE_SOCKET] {
        files::remove_file(&dir.join(socket)).map_err(|error| internal("an old socket is in the way", error))?;
    }
    let starts = |error: std::io::Error| internal("the VMM does not start", error);
    let base = Base::now(deps, handles.spec.id, &handles.tap);
    let tap =
        deps.lab.open_tap(&handles.tap).map_err(|error| internal("the VM's tap cannot be opened", chain(&error)))?;
    let (command, given) = deps.vmm.command(&launch, tap).map_err(starts)?;
    let cgroup = match &deps.cgroups {
        None => None,
        Some(cgroups) => {
            Some(cgroups.enter(&handles.spec).map_err(|error| internal("its control group cannot be made", error))?)
        }
    };
    let jail = Jail::new(&handles.spec, given, cgroup, deps.vmm.needs_root());
    let own =
        [dir.join(names::RUN), dir.join(names::CONSOLE), dir.join(&launch.disk.file), dir.join(names::CONFIG_DRIVE)];
    let own = own.iter().chain(launch.data_disks.iter().map(|disk| &disk.path)).filter(|path| path.exists());
    jail.own(&own.map(PathBuf::as_path).collect::<Vec<_>>()).map_err(starts)?;
    let process = process::spawn(&command, dir, deps.lab.namespace(), jail).map_err(starts)?;
    Ok((process, base))
}

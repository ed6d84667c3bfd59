//! Adjusting: what a VM is to be is noted first, then made true where that can be done while it runs; its next boot makes the
//! rest true.

use contract::{
    ApiError, MebiBytes,
    agent::{AdjustRequest, Adjusted},
    guest::Request,
};

use super::owner::{Owner, Running};
use crate::{
    disk,
    vmm::{jail, qmp},
};

impl Owner {
    /// Changes the VM.
    pub(super) async fn adjust(&mut self, request: AdjustRequest) -> Result<Adjusted, ApiError> {
        self.admit(request.fence)?;
        let dir = self.deps.dirs.dir(self.vm);
        let Some(handles) = self.handles.as_mut().filter(|handles| handles.provisioned) else {
            return Err(ApiError::failed_precondition(format!("the VM {} is not provisioned on this host", self.vm)));
        };
        let before = disk::size(&dir, &handles.disk)?;
        let spec = &mut handles.spec;
        (spec.name, spec.cpus, spec.memory) = (request.name, request.cpus, request.memory);
        // A change that is taken back finds a disk that has grown meanwhile as large as it is.
        spec.disk = request.disk.max(before);
        if let Some(ports) = request.ports {
            spec.features.ports = ports;
        }
        let size = spec.disk;
        handles.growing |= size > before && self.running.is_some();
        let growing = handles.growing;
        self.save()?;
        let mut warnings = Vec::new();
        if let Some(running) = &self.running {
            let mut outcome = Ok(());
            self.with_site(|capabilities, site| outcome = capabilities.changed(site));
            outcome?;
            if growing {
                warnings.extend(self.grow(running, size).await?);
                self.grown()?;
            }
        }
        Ok(Adjusted { disk: Some(size), warnings })
    }

    /// Makes the disk of a running VM larger, and the filesystem on it. What cannot be done now is done at its next start: why.
    async fn grow(&self, running: &Running, size: MebiBytes) -> Result<Option<String>, ApiError> {
        let later = |why: String| Ok(Some(format!("the disk grows at the VM's next start: {why}")));
        let vmm = self.handles.as_ref().and_then(|handles| handles.vmm.as_ref());
        if vmm.is_some_and(|vmm| vmm.paused) {
            return later("it is paused".to_owned());
        }
        if let Err(error) = jail::allow_disk(running.process.identity.pid, size.bytes()) {
            return later(format!("the limit of its VMM's files cannot be raised: {error}"));
        }
        if let Err(error) = qmp::resize_root(&self.deps.dirs.dir(self.vm), size).await {
            return Err(ApiError::unavailable(format!("the VMM did not make the disk larger: {error}"))
                .hint("stop the VM and ask again: a disk that is not in use grows without it"));
        }
        runtime::fault::point("agent/vm.adjust/resized");
        match running.guest.ask(&Request::Grow(size.bytes())).await {
            Ok(_) => Ok(None),
            Err(error) => later(format!("its guest did not make the filesystem larger: {}", error.message)),
        }
    }

    fn grown(&mut self) -> Result<(), ApiError> {
        if let Some(handles) = &mut self.handles {
            handles.growing = false;
        }
        self.save()
    }
}

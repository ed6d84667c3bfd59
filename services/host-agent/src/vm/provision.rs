//! Provisioning: directory, handles, disk, host key and capabilities, each repeatable.

use std::path::Path;

use contract::{
    ApiError,
    agent::{ProvisionRequest, Provisioned},
    config_drive::Settings,
};
use russh::keys::{Algorithm, PrivateKey, ssh_key::LineEnding};

use super::{
    Deps,
    owner::{Owner, internal},
};
use crate::{
    capability::Site,
    disk,
    files::{self, chain},
    handles::Handles,
    vmm::{Launch, names},
};

impl Owner {
    pub(super) async fn provision(&mut self, request: ProvisionRequest) -> Result<Provisioned, ApiError> {
        let ProvisionRequest { fence, spec } = request;
        self.admit(fence)?;
        if self.handles.is_none() && self.deps.dirs.buried(self.vm) == Some(fence.epoch) {
            return Err(ApiError::aborted(format!("the VM {} was removed by this very claim", self.vm)));
        }
        let image = self.deps.images.rootfs(spec.image)?;
        self.deps.kernels.check(spec.kernel.as_ref(), spec.features.kernel.as_ref())?;
        self.deps.capabilities.validate(&spec)?;
        if self.handles.is_none() {
            self.handles = Some(Handles {
                disk: self.deps.disks.handle(),
                tap: self.deps.lab.take_tap(),
                spec: spec.clone(),
                epoch: fence.epoch,
                operation: fence.operation,
                growing: false,
                ssh_host_key: None,
                provisioned: false,
                vmm: None,
                ended: None,
            });
            self.save()?;
        }
        runtime::fault::point("agent/vm.provision/handles");
        let Some(handles) = &mut self.handles else {
            return Err(ApiError::internal("the VM's handles are gone"));
        };
        if handles.provisioned
            && let Some(ssh_host_key) = &handles.ssh_host_key
        {
            return Ok(Provisioned { ssh_host_key: ssh_host_key.clone() });
        }
        handles.spec = spec;
        let (known, deps, dir) = (handles.clone(), self.deps.clone(), self.deps.dirs.dir(self.vm));
        let made = tokio::task::spawn_blocking(move || {
            disk::clone(deps.disks, &image, &dir, &known.disk, known.spec.disk)?;
            runtime::fault::point("agent/vm.provision/disk");
            let ssh_host_key = public_key(&dir)?;
            deps.capabilities.prepare(Site { spec: &known.spec, dir: &dir, tap: &known.tap })?;
            runtime::fault::point("agent/vm.provision/tap");
            Ok::<_, ApiError>(ssh_host_key)
        });
        let ssh_host_key = made.await.map_err(|error| internal("provisioning failed", error))??;
        handles.ssh_host_key = Some(ssh_host_key.clone());
        handles.provisioned = true;
        self.save()?;
        Ok(Provisioned { ssh_host_key })
    }
}

/// Makes disk, config drive and all capabilities what the VM is to be now, before it boots. Blocking.
pub(super) fn refresh(deps: &Deps, site: Site<'_>, launch: &mut Launch) -> Result<(), ApiError> {
    disk::grow(site.dir, &launch.disk, site.spec.disk)?;
    deps.capabilities.prepare(site)?;
    let key = host_key(&site.dir.join(names::SSH_HOST_KEY))?;
    let private = key.to_openssh(LineEnding::LF).map_err(|error| internal("the host key cannot be written", error))?;
    let spec = site.spec;
    let mut settings = Settings {
        vm_id: spec.id.to_string(),
        name: spec.name.clone(),
        domain: spec.domain.clone(),
        network: None,
        ssh_keys: spec.ssh_keys.clone(),
        ssh_host_key: private.to_string(),
        image: spec.config.clone(),
        user_data: None,
        mounts: Vec::new(),
    };
    deps.capabilities.configure(site, &mut settings, launch);
    let drive = settings.to_drive().map_err(|error| ApiError::invalid_argument(chain(&error)))?;
    files::write_atomically(&site.dir.join(names::CONFIG_DRIVE), &drive, 0o600)
        .map_err(|error| internal("the config drive cannot be written", error))
}

/// The public half of the VM's ssh host key, which is made once.
fn public_key(dir: &Path) -> Result<String, ApiError> {
    let key = host_key(&dir.join(names::SSH_HOST_KEY))?;
    key.public_key().to_openssh().map_err(|error| internal("the host key cannot be written", error))
}

fn host_key(path: &Path) -> Result<PrivateKey, ApiError> {
    if let Ok(text) = std::fs::read_to_string(path)
        && let Ok(key) = PrivateKey::from_openssh(&text)
    {
        return Ok(key);
    }
    let failed = |error: &dyn std::fmt::Display| internal("the host key cannot be made", error);
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).map_err(|error| failed(&error))?;
    let text = key.to_openssh(LineEnding::LF).map_err(|error| failed(&error))?;
    files::write_atomically(path, text.as_bytes(), 0o600).map_err(|error| failed(&error))?;
    Ok(key)
}

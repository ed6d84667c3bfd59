//! Provisioning: directory, handles, disk, host key, config drive and tap, each repeatable.

use std::path::Path;

use contract::{
    ApiError, VmId,
    agent::{ProvisionRequest, Provisioned, VmSpec},
    config_drive::{Network, Settings},
};
use russh::keys::{Algorithm, PrivateKey, ssh_key::LineEnding};

use super::owner::{Owner, chain, internal};
use crate::{
    disk, files,
    handles::Handles,
    net::Guarded,
    vmm::{Launch, names},
};

/// The name of a VM's tap.
pub(super) fn tap(vm: VmId) -> String {
    format!("wt{}", vm.tail())
}

impl Owner {
    pub(super) async fn provision(&mut self, request: ProvisionRequest) -> Result<Provisioned, ApiError> {
        let ProvisionRequest { fence, spec } = request;
        self.admit(fence)?;
        if self.handles.is_none() && self.deps.dirs.buried(self.vm) == Some(fence.epoch) {
            return Err(ApiError::aborted(format!("the VM {} was removed by this very claim", self.vm)));
        }
        let image = self.deps.images.rootfs(spec.image)?;
        if self.handles.is_none() {
            self.handles = Some(Handles {
                disk: disk::choose(&self.deps.state_dir),
                tap: tap(self.vm),
                spec: spec.clone(),
                epoch: fence.epoch,
                operation: fence.operation,
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
        handles.spec = spec.clone();
        let guest = Guarded::new(&handles.tap, &spec);
        let (dir, disk, lab) = (self.deps.dirs.dir(self.vm), handles.disk.clone(), self.deps.lab.clone());
        let made = tokio::task::spawn_blocking(move || {
            disk::clone(&image, &dir, &disk, spec.disk)?;
            runtime::fault::point("agent/vm.provision/disk");
            let ssh_host_key = settings(&dir, &spec)?;
            lab.ensure_tap(&guest).map_err(|error| internal("the VM's tap cannot be made", chain(&error)))?;
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

/// Makes disk and config drive what the VM is to be now, before it boots.
pub(super) fn refresh(dir: &Path, launch: &Launch) -> Result<(), ApiError> {
    disk::grow(dir, &launch.disk, launch.spec.disk)?;
    settings(dir, &launch.spec).map(drop)
}

/// Writes the config drive, with a host key made once; the key's public half.
fn settings(dir: &Path, spec: &VmSpec) -> Result<String, ApiError> {
    let key = host_key(&dir.join(names::SSH_HOST_KEY))?;
    let private = key.to_openssh(LineEnding::LF).map_err(|error| internal("the host key cannot be written", error))?;
    let settings = Settings {
        vm_id: spec.id.to_string(),
        name: spec.name.clone(),
        domain: spec.domain.clone(),
        network: Some(Network {
            mac: spec.mac.clone(),
            address: spec.address,
            gateway: spec.gateway,
            dns: vec![spec.gateway],
        }),
        ssh_keys: spec.ssh_keys.clone(),
        ssh_host_key: private.to_string(),
        image: spec.config.clone(),
    };
    let drive = settings.to_drive().map_err(|error| ApiError::invalid_argument(chain(&error)))?;
    files::write_atomically(&dir.join(names::CONFIG_DRIVE), &drive, 0o600)
        .map_err(|error| internal("the config drive cannot be written", error))?;
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

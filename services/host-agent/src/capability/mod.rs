//! Capabilities: what a VM can have beside processors, memory and a root disk. Each is one file with hooks at fixed points of a
//! VM's life; a new one is a new file and a line in [`Capabilities::new`].
//!
//! ```text
//!   validate → prepare → configure → (the VMM starts) → after_boot → … → before_stop → after_stop → … → cleanup
//!              └────────── again at each start ──────────────────┘       └ asked for ┘ └ its end ┘     └ its removal ┘
//! ```

mod disks;
mod dns;
mod network;
mod ports;
mod user_data;

use std::{path::Path, sync::Arc};

use contract::{ApiError, VmId, agent::VmSpec, config_drive::Settings, doctor::Check};

use crate::{dns::Shared, net::Lab, vmm::Launch};

pub use disks::DataDisks;
pub use ports::Ports;

/// A VM as hooks see it.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// What it is to be.
    pub spec: &'a VmSpec,
    /// Its directory.
    pub dir: &'a Path,
    /// Its tap.
    pub tap: &'a str,
}

/// One capability. Each hook may be called again, also by the next agent.
pub trait Capability: Send + Sync + 'static {
    /// Its name, for messages.
    fn name(&self) -> &'static str;

    /// Refuses what this host cannot do, before anything is made.
    fn validate(&self, _: &VmSpec) -> Result<(), ApiError> {
        Ok(())
    }

    /// Makes what the VM needs to be there when it starts. Blocking.
    fn prepare(&self, _: Site<'_>) -> Result<(), ApiError> {
        Ok(())
    }

    /// Says what the guest and the VMM are to be told of it.
    fn configure(&self, _: Site<'_>, _: &mut Settings, _: &mut Launch) {}

    /// The VMM runs: just started, or found running by a new agent. In the agent's runtime.
    fn after_boot(&self, _: Site<'_>) {}

    /// What the VM is to be has changed while it runs. In the agent's runtime.
    fn changed(&self, _: Site<'_>) -> Result<(), ApiError> {
        Ok(())
    }

    /// The VM is going to be stopped because somebody wants it. May be called again. In the agent's runtime.
    fn before_stop(&self, _: Site<'_>) {}

    /// The VMM has ended, or did not start. In the agent's runtime.
    fn after_stop(&self, _: Site<'_>) {}

    /// Removes what is not in the VM's directory. Blocking.
    fn cleanup(&self, _: Site<'_>) -> Result<(), ApiError> {
        Ok(())
    }

    /// When somebody used the VM through it last, Unix time in milliseconds: `now_ms` while somebody does, 0 for never.
    fn used_at(&self, _vm: VmId, _now_ms: u64) -> u64 {
        0
    }

    /// What `doctor` says of it. Blocking.
    fn doctor(&self) -> Vec<Check> {
        Vec::new()
    }
}

/// All capabilities of this host, in the order in which they are prepared; what is undone is undone in reverse.
pub struct Capabilities(Vec<Box<dyn Capability>>);

impl Capabilities {
    /// Those this version has.
    pub fn new(lab: &Lab, dns: &Arc<Shared>, state_dir: &Path, publish_address: std::net::Ipv4Addr) -> Self {
        Self(vec![
            Box::new(network::Network { lab: lab.clone() }),
            Box::new(dns::Dns { lab: lab.clone(), shared: dns.clone() }),
            Box::new(DataDisks::new(state_dir)),
            Box::new(user_data::UserData),
            Box::new(Ports::new(lab.clone(), publish_address)),
        ])
    }

    /// Asks each whether it can.
    ///
    /// # Errors
    /// The first refusal.
    pub fn validate(&self, spec: &VmSpec) -> Result<(), ApiError> {
        self.0.iter().try_for_each(|capability| capability.validate(spec))
    }

    /// Prepares each. Blocking.
    ///
    /// # Errors
    /// The first failure; a repeat goes on from there, and a cleanup takes back what was made.
    pub fn prepare(&self, site: Site<'_>) -> Result<(), ApiError> {
        for capability in &self.0 {
            tracing::debug!(vm.id = %site.spec.id, capability = capability.name(), "prepared");
            capability.prepare(site)?;
        }
        Ok(())
    }

    /// Lets each configure guest and VMM.
    pub fn configure(&self, site: Site<'_>, settings: &mut Settings, launch: &mut Launch) {
        for capability in &self.0 {
            capability.configure(site, settings, launch);
        }
    }

    /// Tells each that the VMM runs.
    pub fn after_boot(&self, site: Site<'_>) {
        for capability in &self.0 {
            capability.after_boot(site);
        }
    }

    /// Tells each of a change while the VMM runs.
    ///
    /// # Errors
    /// The first refusal.
    pub fn changed(&self, site: Site<'_>) -> Result<(), ApiError> {
        self.0.iter().try_for_each(|capability| capability.changed(site))
    }

    /// Tells each that the VM is going to be stopped.
    pub fn before_stop(&self, site: Site<'_>) {
        for capability in self.0.iter().rev() {
            capability.before_stop(site);
        }
    }

    /// Tells each that the VMM has ended.
    pub fn after_stop(&self, site: Site<'_>) {
        for capability in self.0.iter().rev() {
            capability.after_stop(site);
        }
    }

    /// Cleans up each. Blocking.
    ///
    /// # Errors
    /// The first failure, after all were tried.
    pub fn cleanup(&self, site: Site<'_>) -> Result<(), ApiError> {
        let outcomes: Vec<_> = self.0.iter().rev().map(|capability| capability.cleanup(site)).collect();
        outcomes.into_iter().collect()
    }

    /// When somebody used the VM through one of them last.
    pub fn used_at(&self, vm: VmId, now_ms: u64) -> u64 {
        self.0.iter().map(|capability| capability.used_at(vm, now_ms)).max().unwrap_or_default()
    }

    /// What each says to `doctor`. Blocking.
    pub fn doctor(&self) -> Vec<Check> {
        self.0.iter().flat_map(|capability| capability.doctor()).collect()
    }
}

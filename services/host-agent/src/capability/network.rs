//! The VM's network: its tap on the lab's bridge, guarded against false addresses, and whom it reaches.

use contract::{ApiError, config_drive, config_drive::Settings, doctor::Check};

use super::{Capability, Site};
use crate::{
    files::chain,
    net::{Guarded, Lab},
    vmm::Launch,
};

/// Taps, their guard and the network modes.
pub(super) struct Network {
    pub(super) lab: Lab,
}

impl Capability for Network {
    fn name(&self) -> &'static str {
        "network"
    }

    fn prepare(&self, site: Site<'_>) -> Result<(), ApiError> {
        let guest = Guarded::new(site.tap, site.spec);
        self.lab
            .ensure_tap(&guest)
            .map_err(|error| ApiError::internal(format!("the VM's tap cannot be made: {}", chain(&error))))
    }

    fn configure(&self, site: Site<'_>, settings: &mut Settings, _: &mut Launch) {
        let spec = site.spec;
        settings.network = Some(config_drive::Network {
            mac: spec.mac.clone(),
            address: spec.address,
            gateway: spec.gateway,
            dns: vec![spec.gateway],
        });
    }

    fn cleanup(&self, site: Site<'_>) -> Result<(), ApiError> {
        self.lab
            .remove_guest(&Guarded::new(site.tap, site.spec))
            .map_err(|error| ApiError::internal(format!("the tap cannot be removed: {}", chain(&error))))
    }

    fn doctor(&self) -> Vec<Check> {
        let (namespace, pool) = (self.lab.namespace(), self.lab.pool());
        let network = if namespace.exists() {
            Check::pass("network", format!("the lab's network namespace {} is there", namespace.name()))
        } else {
            Check::fail("network", format!("the network namespace {} is missing", namespace.name()))
                .mend("restart the host-agent: it makes what is missing")
        };
        let taps = match pool.trouble {
            None => Check::pass("taps", format!("{} of {} taps are ready for new VMs", pool.ready, pool.size)),
            Some(why) => Check::warn("taps", format!("no tap can be made ready for a new VM: {why}"))
                .mend("see to what the kernel says; the host-agent tries again each minute"),
        };
        vec![network, taps]
    }
}

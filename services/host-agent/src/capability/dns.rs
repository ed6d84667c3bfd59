//! Names: the lab's name server answers every VM that reaches it; what is not the lab's it asks of others for those VMs only
//! that may reach the internet by themselves, so that a question is no way out for the rest.

use std::sync::Arc;

use contract::{ApiError, doctor::Check, feature::NetworkMode};

use super::{Capability, Site};
use crate::{dns::Shared, net::Lab};

/// The name server as VMs have it.
pub(super) struct Dns {
    pub(super) lab: Lab,
    pub(super) shared: Arc<Shared>,
}

impl Capability for Dns {
    fn name(&self) -> &'static str {
        "dns"
    }

    fn prepare(&self, site: Site<'_>) -> Result<(), ApiError> {
        self.after_boot(site);
        Ok(())
    }

    fn after_boot(&self, site: Site<'_>) {
        let may = site.spec.features.network == NetworkMode::Internet;
        self.shared.set_outward(site.spec.address.addr(), may);
    }

    fn cleanup(&self, site: Site<'_>) -> Result<(), ApiError> {
        self.shared.set_outward(site.spec.address.addr(), false);
        Ok(())
    }

    fn doctor(&self) -> Vec<Check> {
        self.shared.examine(&self.lab)
    }
}

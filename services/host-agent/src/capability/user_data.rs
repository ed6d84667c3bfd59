//! The first-boot script: handed to guest-agent on the config drive, which runs it once.

use contract::config_drive::Settings;

use super::{Capability, Site};
use crate::vmm::Launch;

/// First-boot scripts.
pub(super) struct UserData;

impl Capability for UserData {
    fn name(&self) -> &'static str {
        "user_data"
    }

    fn configure(&self, site: Site<'_>, settings: &mut Settings, _: &mut Launch) {
        settings.user_data.clone_from(&site.spec.features.user_data);
    }
}

//! Adoption: at its start an agent takes over the VMs that live and records those that died.

use std::{io, sync::Arc};

use super::{Vms, owner::Owner};
use crate::{handles::Found, net::Guarded, vmm::process::Process};

impl Vms {
    /// Takes over what an earlier agent left. Call once, before any command is served.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub fn adopt(self: &Arc<Self>) -> io::Result<()> {
        for (vm, found) in self.deps.dirs.all()? {
            let mut handles = match found {
                Found::Whole(handles) => *handles,
                Found::Nothing => {
                    // Nothing was made before the handles were: the directory is all there is.
                    tracing::warn!(vm.id = %vm, "a directory without handles is removed");
                    self.deps.dirs.remove(vm)?;
                    continue;
                }
                Found::Damaged(why) => {
                    tracing::error!(vm.id = %vm, why, "a VM is left alone until its handles are mended or it is deleted");
                    let handle = Owner::damaged(vm, self.deps.clone(), why, Process::find(vm)).start();
                    self.tasks().insert(vm, handle);
                    continue;
                }
            };
            self.deps.lab.claim_tap(&handles.tap);
            let process = handles.vmm.as_ref().filter(|vmm| !vmm.is_of_another_boot()).and_then(|vmm| {
                vmm.process.and_then(|identity| Process::adopt(identity, vm)).or_else(|| Process::find(vm))
            });
            if let (Some(process), Some(vmm)) = (&process, &mut handles.vmm) {
                tracing::info!(vm.id = %vm, vmm.pid = process.identity.pid, "a running VM is adopted");
                vmm.process = Some(process.identity);
                self.deps.dirs.save(&handles)?;
            }
            let handle = Owner::found(vm, self.deps.clone(), handles, process).start();
            self.tasks().insert(vm, handle);
        }
        Ok(())
    }

    /// Who may speak on which tap, of all VMs with handles. Blocking.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub fn guarded(&self) -> io::Result<Vec<Guarded>> {
        let mut found = self.deps.dirs.all()?;
        // What is let through last counts: a VM that runs, not a stopped one the lab forgot and whose address it gave away.
        found.sort_by_key(|(_, found)| matches!(found, Found::Whole(handles) if handles.vmm.is_some()));
        Ok(found
            .into_iter()
            .filter_map(|(_, found)| match found {
                Found::Whole(handles) => Some(Guarded::new(&handles.tap, &handles.spec)),
                Found::Nothing | Found::Damaged(_) => None,
            })
            .collect())
    }
}

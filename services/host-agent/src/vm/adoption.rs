//! Adoption: at its start an agent takes over the VMs that live, records those that died, and removes what
//! nobody owns.

use std::{collections::HashSet, fs, io, sync::Arc};

use contract::VmId;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

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
            let process = handles.vmm.as_ref().and_then(|vmm| {
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
        self.end_strays()
    }

    /// Ends VMMs that run in a directory of ours which has no handles.
    fn end_strays(&self) -> io::Result<()> {
        let known: HashSet<VmId> = self.tasks().keys().copied().collect();
        let root = self.deps.state_dir.join("vms");
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let Ok(dir) = fs::read_link(format!("/proc/{pid}/cwd")) else { continue };
            let Ok(below) = dir.strip_prefix(&root) else { continue };
            let name = below.components().next().map(|part| part.as_os_str().to_string_lossy()).unwrap_or_default();
            let Ok(vm) = name.trim_end_matches(" (deleted)").parse::<VmId>() else { continue };
            if !known.contains(&vm)
                && Process::find(vm).is_some_and(|process| process.identity.pid == pid.unsigned_abs())
            {
                tracing::warn!(vm.id = %vm, vmm.pid = pid, "a VMM nobody owns is ended");
                kill(Pid::from_raw(pid), Signal::SIGKILL)?;
            }
        }
        Ok(())
    }

    /// Who may speak on which tap, of all VMs with handles. Blocking.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub fn guarded(&self) -> io::Result<Vec<Guarded>> {
        let found = self.deps.dirs.all()?.into_iter();
        Ok(found
            .filter_map(|(_, found)| match found {
                Found::Whole(handles) => Some(Guarded::new(&handles.tap, &handles.spec)),
                Found::Nothing | Found::Damaged(_) => None,
            })
            .collect())
    }

    /// Removes taps of this lab that no VM's handles name. Blocking.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn remove_stray_taps(&self) -> Result<(), crate::net::NetError> {
        let known: HashSet<String> = self.tasks().keys().map(|vm| super::provision::tap(*vm)).collect();
        for tap in self.deps.lab.taps()? {
            if !known.contains(&tap) {
                tracing::warn!(tap, "a tap nobody owns is removed");
                self.deps.lab.remove_tap(&tap)?;
            }
        }
        Ok(())
    }
}

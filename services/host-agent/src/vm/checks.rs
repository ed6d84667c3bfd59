//! **Checks**: what `doctor` looks at on a host, each with its mend. Blocking, all of them.

use std::path::Path;

use contract::doctor::Check;

use super::Deps;
use crate::{cgroup::Cgroups, files, handles::Found, vmm::Vmm};

/// Less free disk space than this does not last, in bytes.
const FREE_MIN: u64 = 2 << 30;
/// What the kernel must have: where that shows, and the module that brings it.
const KERNEL: [(&str, &str); 2] = [("/dev/net/tun", "tun"), ("/proc/sys/net/ipv4/ip_forward", "ipv4")];

/// All checks of this host.
pub(super) fn all(deps: &Deps) -> Vec<Check> {
    let mut checks = accelerated(deps.vmm.as_ref());
    checks.push(kernel());
    checks.push(cgroups(deps.cgroups.as_ref()));
    checks.push(space(&deps.state_dir));
    checks.extend(deps.images.doctor());
    checks.push(handles(deps));
    checks.push(Check::pass("disks", format!("root disks are made by {}", deps.disks.as_str())));
    checks.extend(deps.kernels.checks());
    checks.extend(deps.capabilities.doctor());
    checks
}

fn accelerated(vmm: &dyn Vmm) -> Vec<Check> {
    let name = vmm.name();
    let mut checks = vec![match vmm.version() {
        Ok(version) => Check::pass("vmm", version),
        Err(error) => Check::fail("vmm", format!("the VMM cannot be started: {error}"))
            .mend("install it: apt-get install qemu-system-x86"),
    }];
    checks.push(if name.ends_with("kvm") {
        Check::pass("kvm", format!("guests run under {name}"))
    } else {
        let why = if Path::new("/dev/kvm").exists() { "guests hang under KVM here" } else { "there is no /dev/kvm" };
        Check::warn("kvm", format!("guests are emulated ({name}): {why}")).mend(
            "switch virtualization on in the firmware, or nested virtualization in the hypervisor; load kvm-intel or kvm-amd",
        )
    });
    if vmm.needs_root() {
        checks.push(
            Check::warn("vmm user", "VMMs run as root, because only root may open /dev/kvm")
                .mend("give /dev/kvm to a group: chgrp kvm /dev/kvm; chmod 660 /dev/kvm"),
        );
    }
    checks
}

fn kernel() -> Check {
    let missing: Vec<&str> =
        KERNEL.into_iter().filter(|(path, _)| !Path::new(path).exists()).map(|(_, module)| module).collect();
    if missing.is_empty() {
        return Check::pass("kernel", "the machine's kernel has what VMs' networks need");
    }
    let modules = missing.join(" ");
    Check::fail("kernel", format!("the machine's kernel lacks {modules}")).mend(format!("modprobe -a {modules}"))
}

fn cgroups(cgroups: Option<&Cgroups>) -> Check {
    const MEND: &str = "boot the machine with systemd.unified_cgroup_hierarchy=1";
    match cgroups.map(Cgroups::missing) {
        None => Check::warn("cgroups", "there is no cgroup v2: VMMs are not limited by one").mend(MEND),
        Some(missing) if missing.is_empty() => Check::pass("cgroups", "each VMM is limited by its control group"),
        Some(missing) => {
            Check::warn("cgroups", format!("cgroup v2 lacks {}: cgroup v1 holds them", missing.join(", "))).mend(MEND)
        }
    }
}

fn space(state_dir: &Path) -> Check {
    match files::free_bytes(state_dir) {
        Ok(free) if free >= FREE_MIN => Check::pass("disk", format!("{} MiB are free", free >> 20)),
        Ok(free) => Check::fail("disk", format!("only {} MiB are free in {}", free >> 20, state_dir.display()))
            .mend("delete VMs or images, or give the state directory more room"),
        Err(error) => Check::fail("disk", format!("{} cannot be looked at: {error}", state_dir.display()))
            .mend("look into the filesystem it is on (dmesg), then restart the host-agent"),
    }
}

fn handles(deps: &Deps) -> Check {
    let damaged = |all: Vec<(_, Found)>| all.iter().filter(|(_, found)| matches!(found, Found::Damaged(_))).count();
    match deps.dirs.all().map(damaged) {
        Ok(0) => Check::pass("handles", "every VM's handles can be read"),
        Ok(count) => Check::fail("handles", format!("{count} VMs have handles that cannot be read"))
            .mend("mend their handles.json and restart the host-agent, or delete them"),
        Err(error) => Check::fail("handles", format!("the VMs' directory cannot be read: {error}"))
            .mend("look into the filesystem it is on (dmesg), then restart the host-agent"),
    }
}

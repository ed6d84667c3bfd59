//! The KVM probe: that `/dev/kvm` is there says nothing, so a guest is booted under it and must speak.

use std::{
    fs::OpenOptions,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::{names, qemu::Qemu};
use crate::{config::Acceleration, kernel::BootFiles};

/// How long the guest kernel has to say its first word: under a working KVM it takes a tenth of a second.
const BOUND: Duration = Duration::from_secs(5);

/// Whether guests run under KVM here. Blocking for up to [`BOUND`] when it has to find out.
pub fn kvm_works(acceleration: Acceleration, state_dir: &Path, boot: &BootFiles) -> bool {
    match acceleration {
        Acceleration::Kvm => true,
        Acceleration::Tcg => false,
        Acceleration::Auto => {
            let openable = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
            let works = openable
                && boots(state_dir, boot).unwrap_or_else(|error| {
                    tracing::warn!(%error, "the KVM probe could not run");
                    false
                });
            if openable && !works {
                tracing::warn!("/dev/kvm is there, but a guest hangs under it: guests are emulated");
            }
            works
        }
    }
}

fn boots(state_dir: &Path, boot: &BootFiles) -> std::io::Result<bool> {
    let dir = tempfile::Builder::new().prefix(".probe-").tempdir_in(state_dir)?;
    let qemu = Qemu { kvm: true, tsc_khz: None };
    let mut command = qemu.base(&boot.vmlinux.display().to_string(), &boot.initramfs.display().to_string(), 1, 256, "");
    for argument in &mut command {
        // The probe waits for the kernel's first line, which `quiet` would hide.
        *argument = argument.replace(" quiet loglevel=4", "");
    }
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let give_up = Instant::now() + BOUND;
    let console = dir.path().join(names::own(names::CONSOLE));
    let mut spoke = false;
    while !spoke && Instant::now() < give_up && child.try_wait()?.is_none() {
        std::thread::sleep(Duration::from_millis(20));
        spoke = std::fs::read(&console).is_ok_and(|text| text.windows(13).any(|part| part == b"Linux version"));
    }
    child.kill()?;
    child.wait()?;
    Ok(spoke)
}

//! What a lab **needs** of its machine: the right to make namespaces, the files of a guest, and the binaries beside the test.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::SERVICES;

/// What host-agents need and a machine may lack.
pub(super) struct GuestFiles {
    pub kernel: PathBuf,
    pub modules: PathBuf,
    pub agent: PathBuf,
}

/// Why no VM can be booted here, if so: a test prints it as `skipped: …`.
pub fn missing_for_vms() -> Option<String> {
    if !nix_is_root() {
        return Some("VM tests need root".to_owned());
    }
    guest_files().err()
}

fn nix_is_root() -> bool {
    // /proc/self is owned by the effective user.
    std::os::unix::fs::MetadataExt::uid(&match std::fs::metadata("/proc/self") {
        Ok(metadata) => metadata,
        Err(_) => return false,
    }) == 0
}

pub(super) fn guest_files() -> Result<GuestFiles, String> {
    let path = |variable: &str| match std::env::var_os(variable) {
        Some(path) if Path::new(&path).exists() => Ok(PathBuf::from(path)),
        Some(path) => Err(format!("{variable} names {}, which does not exist", path.display())),
        None => Err(format!("{variable} is not set (deploy/check sets it)")),
    };
    Ok(GuestFiles {
        kernel: path("WARREN_KERNEL")?,
        modules: path("WARREN_KERNEL_MODULES")?,
        agent: path("WARREN_GUEST_AGENT")?,
    })
}

/// The directory of this workspace's binaries: the test's own, or the one above its `deps`.
///
/// # Errors
/// Some are not built.
pub fn binaries() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let all = || ["warren", "host-agent"].into_iter().chain(SERVICES);
    let complete = |dir: &&Path| all().all(|name| dir.join(name).is_file());
    own.ancestors().skip(1).take(2).find(complete).map(Path::to_owned).ok_or_else(|| {
        let names: Vec<_> = all().collect();
        io::Error::other(format!(
            "{} must stand beside {}: run `cargo build --workspace` first (deploy/check does)",
            names.join(", "),
            own.display()
        ))
    })
}

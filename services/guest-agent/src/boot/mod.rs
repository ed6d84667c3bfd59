//! The boot: from the kernel's first process in the initramfs to a root filesystem with a name and a network.
//!
//! Single-threaded throughout, so that the fork after it is safe.

mod disks;
mod drive;
mod identity;
mod init;
mod modules;
mod mounts;
mod network;
mod root;

use std::{fmt::Display, path::Path, time::Duration};

use contract::config_drive::{ROOT_SERIAL, Settings};

pub use init::Init;

/// What a boot leaves behind for the processes after it.
#[derive(Debug)]
pub struct Booted {
    /// The VM's settings.
    pub settings: Settings,
    /// Who becomes process 1.
    pub init: Init,
    /// What did not work but did not stop the boot.
    pub warnings: Vec<String>,
}

/// Why the boot cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}")]
pub struct BootError {
    action: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Says what was tried when something failed.
trait During<T> {
    fn during(self, action: impl Display) -> Result<T, BootError>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> During<T> for Result<T, E> {
    fn during(self, action: impl Display) -> Result<T, BootError> {
        self.map_err(|source| BootError { action: action.to_string(), source: source.into() })
    }
}

/// How long a disk may take to appear after its driver was loaded.
const DEVICE_WAIT: Duration = Duration::from_secs(10);

/// Boots the VM.
///
/// # Errors
/// The root filesystem or the settings cannot be had; everything less is a warning in [`Booted`].
pub fn boot() -> Result<Booted, BootError> {
    mounts::early()?;
    let mut warnings = modules::load_all(Path::new("/modules"));
    crate::logging::start();
    let disks = drive::find(DEVICE_WAIT)?;
    root::mount(&disks.root)?;
    warn(&mut warnings, "grow the root filesystem", root::grow(&disks.root, Path::new(root::MOUNT)));
    for (what, outcome) in identity::apply(Path::new(root::MOUNT), &disks.settings) {
        warn(&mut warnings, what, outcome);
    }
    warn(&mut warnings, "set up the network", network::apply(disks.settings.network.as_ref()));
    root::switch()?;
    for disk in &disks.settings.mounts {
        warn(&mut warnings, format_args!("mount the data disk {}", disk.serial), disks::mount(disk, DEVICE_WAIT));
    }
    let init = init::find(Path::new("/"));
    if matches!(init, Init::GuestAgent) {
        for (what, outcome) in mounts::without_init() {
            warn(&mut warnings, what, outcome);
        }
    }
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    Ok(Booted { settings: disks.settings, init, warnings })
}

/// How long the kernel may take to see that a disk has become larger.
const LARGER_WAIT: Duration = Duration::from_secs(5);

/// Grows the root filesystem, which is in use, once its disk has so many bytes.
///
/// # Errors
/// The disk stays smaller, or the filesystem cannot grow.
pub fn grow_root(bytes: u64) -> Result<(), BootError> {
    let device = disks::larger(Path::new("/sys/block"), ROOT_SERIAL, bytes, LARGER_WAIT)?;
    root::grow(&device, Path::new("/"))
}

fn warn<T, E: std::error::Error>(warnings: &mut Vec<String>, what: impl Display, outcome: Result<T, E>) {
    if let Err(error) = outcome {
        warnings.push(format!("could not {what}: {}", chain(&error)));
    }
}

/// An error with all its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

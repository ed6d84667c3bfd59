//! Data disks: sparse files in the VM's directory, or below `disks/` where they outlive it.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use contract::{
    ApiError, VmName,
    config_drive::{DiskMount, Settings},
    doctor::Check,
    feature::DataDisk,
};

use super::{Capability, Site};
use crate::{
    files,
    vmm::{DiskFile, Launch},
};

/// Data disks of this host's VMs.
#[derive(Clone, Debug)]
pub struct DataDisks {
    kept: PathBuf,
}

impl DataDisks {
    /// Kept ones are below `<state>/disks`.
    pub fn new(state_dir: &Path) -> Self {
        Self { kept: state_dir.join("disks") }
    }

    /// The files of these disks of the VM in that directory.
    pub fn files(&self, dir: &Path, disks: &[DataDisk]) -> Vec<PathBuf> {
        disks.iter().map(|disk| self.path(dir, disk)).collect()
    }

    fn path(&self, dir: &Path, disk: &DataDisk) -> PathBuf {
        if disk.keep { self.kept_path(&disk.name) } else { dir.join(format!("data-{}.img", disk.name)) }
    }

    fn kept_path(&self, name: &VmName) -> PathBuf {
        self.kept.join(format!("{name}.img"))
    }

    /// Removes a kept disk; its absence is fine. Blocking.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, name: &VmName) -> Result<(), ApiError> {
        files::remove_file(&self.kept_path(name))
            .map_err(|error| ApiError::internal(format!("the disk {name} cannot be removed: {error}")))
    }

    fn make(&self, site: Site<'_>, disk: &DataDisk) -> Result<(), ApiError> {
        let path = self.path(site.dir, disk);
        let failed = |error: io::Error| {
            let message = format!("the data disk {} cannot be made: {error}", disk.name);
            match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ApiError::resource_exhausted(message),
                _ => ApiError::internal(message),
            }
        };
        if disk.keep {
            fs::create_dir_all(&self.kept).map_err(failed)?;
            fs::set_permissions(&self.kept, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        }
        if let Ok(metadata) = fs::metadata(&path) {
            // One that is there is somebody's data: it only grows.
            if metadata.len() < disk.size.bytes() {
                OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .and_then(|file| file.set_len(disk.size.bytes()))
                    .map_err(failed)?;
            }
            return Ok(());
        }
        // Made aside: a name that is there means a whole disk.
        let fresh = path.with_extension("new");
        files::remove_file(&fresh).map_err(failed)?;
        let file = OpenOptions::new().write(true).create_new(true).open(&fresh).map_err(failed)?;
        file.set_len(disk.size.bytes()).map_err(failed)?;
        if disk.mount.is_some() {
            format_ext4(&fresh, disk)?;
        }
        file.sync_all()
            .and_then(|()| fs::rename(&fresh, &path))
            .and_then(|()| files::sync_parent(&path))
            .map_err(failed)
    }
}

fn format_ext4(path: &Path, disk: &DataDisk) -> Result<(), ApiError> {
    let label: String = disk.name.as_str().chars().take(16).collect();
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-L", &label]);
    let output = command.arg(path).output().map_err(|error| {
        ApiError::failed_precondition(format!("mke2fs cannot be started: {error}"))
            .hint("install e2fsprogs on the host")
    })?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(ApiError::internal(format!("the data disk {} cannot get a filesystem: {why}", disk.name)))
}

impl Capability for DataDisks {
    fn name(&self) -> &'static str {
        "disks"
    }

    fn prepare(&self, site: Site<'_>) -> Result<(), ApiError> {
        site.spec.features.disks.iter().try_for_each(|disk| self.make(site, disk))
    }

    fn configure(&self, site: Site<'_>, settings: &mut Settings, launch: &mut Launch) {
        for disk in &site.spec.features.disks {
            let serial = disk.name.to_string();
            launch.data_disks.push(DiskFile { path: self.path(site.dir, disk), serial: serial.clone() });
            settings.mounts.extend(disk.mount.clone().map(|path| DiskMount { serial, path }));
        }
    }

    fn doctor(&self) -> Vec<Check> {
        match Command::new("mke2fs").arg("-V").output() {
            Ok(_) => Vec::new(),
            Err(error) => {
                vec![
                    Check::fail("mke2fs", format!("mke2fs cannot be started: {error}"))
                        .mend("apt-get install e2fsprogs"),
                ]
            }
        }
    }
}

//! Handles: what is transient on this host, one `handles.json` a VM.
//!
//! The file is written before the first kernel object exists and names each object before it is made, so that whoever
//! finds it after a crash knows what to adopt and what to remove.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use contract::{OperationId, VmId, agent::VmSpec, guest::GuestFacts};
use serde::{Deserialize, Serialize};

use crate::{files, usage::Base};

const FILE: &str = "handles.json";
/// How long a removed VM's highest epoch is remembered: longer than any command can be late.
const TOMBSTONE_KEEP: Duration = Duration::from_secs(24 * 3600);

/// What one VM has on this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Handles {
    /// What it is to be.
    pub spec: VmSpec,
    /// The highest epoch seen.
    pub epoch: i64,
    /// The operation that came with it.
    pub operation: OperationId,
    /// Its tap in the lab's namespace.
    pub tap: String,
    /// Its disk, in its directory.
    pub disk: DiskHandle,
    /// Whether its disk is being made larger while it runs.
    #[serde(default)]
    pub growing: bool,
    /// The public half of its ssh host key, once made.
    pub ssh_host_key: Option<String>,
    /// Whether everything above exists.
    pub provisioned: bool,
    /// Its VMM, from before it is spawned until it has ended.
    pub vmm: Option<VmmHandle>,
    /// How the last VMM ended.
    pub ended: Option<Ended>,
}

/// What stands in a VM's directory.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// No handles: nothing was made yet but the directory.
    Nothing,
    /// Handles.
    Whole(Box<Handles>),
    /// Something this version cannot read, and why: torn by a full disk, edited, or of a newer version. Its VM is
    /// somebody's, so nothing of it may be removed or overwritten.
    Damaged(String),
}

/// A disk in a VM's directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskHandle {
    /// File name in the VM's directory.
    pub file: String,
    /// `raw` or `qcow2`.
    pub format: String,
}

/// A VMM process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmmHandle {
    /// Its identity; absent between the decision to spawn it and its recording: then it is looked for by
    /// its command line.
    pub process: Option<ProcessIdentity>,
    /// The machine's boot it was spawned in (`/proc/sys/kernel/random/boot_id`): none outlives that.
    #[serde(default)]
    pub boot_id: String,
    /// When it was spawned, Unix time in milliseconds; the boot deadline counts from here.
    pub spawned_at_ms: u64,
    /// Whether its end is wanted, so that it counts as stopped and not as failed.
    pub stop_wanted: bool,
    /// Whether its guest is to be paused. Written before it is done, and done again by the next agent.
    #[serde(default)]
    pub paused: bool,
    /// What its guest said when it was ready.
    pub guest: Option<GuestFacts>,
    /// What the counters that outlive a VMM showed when this one was spawned.
    #[serde(default)]
    pub base: Base,
}

impl VmmHandle {
    /// One that is about to be spawned.
    pub fn new(spawned_at_ms: u64) -> Self {
        Self {
            process: None,
            boot_id: boot_id(),
            spawned_at_ms,
            stop_wanted: false,
            paused: false,
            guest: None,
            base: Base::default(),
        }
    }

    /// Whether the machine was restarted since.
    pub fn is_of_another_boot(&self) -> bool {
        !self.boot_id.is_empty() && self.boot_id != boot_id()
    }
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// A process that cannot be taken for another: ids are reused, start times with them are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Process id.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks after boot.
    pub start_time: u64,
}

/// How a VMM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Whether as asked, or by the guest's own power-off.
    pub clean: bool,
    /// In words.
    pub reason: String,
    /// The console's last lines when it was not clean.
    pub console_tail: Option<String>,
}

/// Where VMs live on this host.
#[derive(Clone, Debug)]
pub struct VmDirs {
    root: PathBuf,
}

impl VmDirs {
    /// Opens (and makes) `<state>/vms`, and forgets old tombstones.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let dirs = Self { root: state_dir.join("vms") };
        fs::create_dir_all(dirs.tombstones())?;
        // Disks and consoles are nobody's but their VM's; VMMs are given what they need, and look for nothing by its path.
        fs::set_permissions(&dirs.root, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(dirs.tombstones())? {
            let entry = entry?;
            let age = SystemTime::now().duration_since(entry.metadata()?.modified()?).unwrap_or_default();
            if age > TOMBSTONE_KEEP {
                files::remove_file(&entry.path())?;
            }
        }
        Ok(dirs)
    }

    /// A VM's directory.
    pub fn dir(&self, vm: VmId) -> PathBuf {
        self.root.join(vm.to_string())
    }

    /// Every VM with a directory, and what stands in it.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn all(&self) -> io::Result<Vec<(VmId, Found)>> {
        let mut all = Vec::new();
        for path in files::subdirectories(&self.root)? {
            let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            match id {
                Some(vm) => all.push((vm, self.load(vm)?)),
                None => tracing::warn!(path = %path.display(), "not a VM's directory; left alone"),
            }
        }
        Ok(all)
    }

    /// A VM's handles.
    ///
    /// # Errors
    /// They are there and cannot be opened.
    pub fn load(&self, vm: VmId) -> io::Result<Found> {
        let path = self.dir(vm).join(FILE);
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
            Err(error) => Err(error),
            Ok(bytes) => Ok(match serde_json::from_slice(&bytes) {
                Ok(handles) => Found::Whole(Box::new(handles)),
                Err(error) => Found::Damaged(format!("{} cannot be read: {error}", path.display())),
            }),
        }
    }

    /// Saves a VM's handles durably; makes its directory when it is missing.
    ///
    /// # Errors
    /// The disk is full or not writable.
    pub fn save(&self, handles: &Handles) -> io::Result<()> {
        let dir = self.dir(handles.spec.id);
        if !dir.exists() {
            fs::create_dir(&dir)?;
            files::sync_parent(&dir)?;
        }
        files::write_atomically(&dir.join(FILE), &serde_json::to_vec_pretty(handles)?, 0o600)
    }

    /// Removes a VM's directory.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, vm: VmId) -> io::Result<()> {
        files::remove_dir(&self.dir(vm))?;
        fs::File::open(&self.root)?.sync_all()
    }

    /// Remembers the highest epoch of a removed VM, so that a late command cannot bring it back.
    ///
    /// # Errors
    /// The disk is full or not writable.
    pub fn bury(&self, vm: VmId, epoch: i64) -> io::Result<()> {
        files::write_atomically(&self.tombstones().join(vm.to_string()), epoch.to_string().as_bytes(), 0o600)
    }

    /// The highest epoch of a removed VM.
    pub fn buried(&self, vm: VmId) -> Option<i64> {
        fs::read_to_string(self.tombstones().join(vm.to_string())).ok()?.trim().parse().ok()
    }

    fn tombstones(&self) -> PathBuf {
        self.root.join(".tombstones")
    }
}

#[cfg(test)]
mod tests {
    use contract::{ImageId, MebiBytes, image::ImageConfig};

    use super::*;

    fn handles() -> Handles {
        let id = VmId::new();
        Handles {
            spec: VmSpec {
                id,
                name: "web".parse().unwrap(),
                image: ImageId::new(),
                config: ImageConfig::default(),
                cpus: 1,
                memory: MebiBytes(128),
                disk: MebiBytes(64),
                address: "10.77.0.2/24".parse().unwrap(),
                gateway: "10.77.0.1".parse().unwrap(),
                mac: "02:00:00:00:00:01".into(),
                domain: "warren".into(),
                ssh_keys: vec![],
                features: contract::feature::Features::default(),
                kernel: None,
            },
            epoch: 3,
            operation: OperationId::new(),
            tap: "wt00000000".into(),
            disk: DiskHandle { file: "root.qcow2".into(), format: "qcow2".into() },
            growing: false,
            ssh_host_key: None,
            provisioned: false,
            vmm: None,
            ended: None,
        }
    }

    #[test]
    fn handles_are_read_back_and_torn_ones_are_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = VmDirs::open(dir.path()).unwrap();
        let handles = handles();
        dirs.save(&handles).unwrap();
        assert_eq!(dirs.all().unwrap(), vec![(handles.spec.id, Found::Whole(Box::new(handles.clone())))]);
        fs::write(dirs.dir(handles.spec.id).join(FILE), b"{\"spec\":").unwrap();
        assert!(matches!(dirs.load(handles.spec.id).unwrap(), Found::Damaged(why) if why.contains("handles.json")));
        fs::remove_file(dirs.dir(handles.spec.id).join(FILE)).unwrap();
        assert_eq!(dirs.load(handles.spec.id).unwrap(), Found::Nothing);
        dirs.remove(handles.spec.id).unwrap();
        assert_eq!(dirs.all().unwrap(), vec![]);
    }

    #[test]
    fn a_tombstone_outlives_its_vm() {
        let dir = tempfile::tempdir().unwrap();
        let vm = VmId::new();
        VmDirs::open(dir.path()).unwrap().bury(vm, 7).unwrap();
        let dirs = VmDirs::open(dir.path()).unwrap();
        assert_eq!((dirs.buried(vm), dirs.buried(VmId::new())), (Some(7), None));
    }
}

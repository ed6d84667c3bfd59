//! The **catalog**: the kernels a VM of this host may ask for by name, beside the host's own.
//!
//! Each is a directory of `WARREN_KERNELS` that holds what a distribution's kernel package does: `boot/vmlinuz-*` (or
//! `vmlinux*`) and `lib/modules/<release>`; or the packages themselves (.deb, .rpm), or a bare vmlinux or bzImage. One whose drivers are
//! all built in needs no modules.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use contract::{ApiError, KernelName, agent::VmKernel, doctor::Check};

use super::{BootFiles, KernelError, KernelObjects, file_error, package, prepare};
use crate::files::{self, chain};

/// How many kernels of the directory are offered to the lab; more are left out.
const KERNELS_MAX: usize = 64;

/// The kernels of this host.
pub struct Kernels {
    default: BootFiles,
    objects: Arc<KernelObjects>,
    state_dir: PathBuf,
    dir: Option<PathBuf>,
    guest_agent: PathBuf,
    /// Prepared once an agent's life; held while one is prepared, as two of the same would do the work twice.
    prepared: Mutex<HashMap<KernelName, BootFiles>>,
}

impl Kernels {
    /// The host's own kernel, those in `dir`, and the lab's that are here.
    pub fn new(
        default: BootFiles,
        state_dir: &Path,
        dir: Option<&Path>,
        guest_agent: &Path,
        objects: Arc<KernelObjects>,
    ) -> Self {
        let (state_dir, dir, prepared) = (state_dir.to_owned(), dir.map(Path::to_owned), Mutex::default());
        Self { default, objects, state_dir, dir, guest_agent: guest_agent.to_owned(), prepared }
    }

    /// The lab's kernels that are here.
    pub fn objects(&self) -> &Arc<KernelObjects> {
        &self.objects
    }

    /// The kernels that can be asked for by name, sorted. A directory whose name is none is left out. Blocking.
    pub fn names(&self) -> Vec<KernelName> {
        let dirs = self.dir.as_deref().map(files::subdirectories);
        let dirs = dirs.and_then(Result::ok).unwrap_or_default();
        let mut names: Vec<KernelName> =
            dirs.iter().filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect();
        names.sort();
        names.truncate(KERNELS_MAX);
        names
    }

    /// Whether a VM may boot: the kernel of the lab's it was given, or else the one of that name here.
    ///
    /// # Errors
    /// `failed_precondition`: it is not here.
    pub fn check(&self, given: Option<&VmKernel>, name: Option<&KernelName>) -> Result<(), ApiError> {
        match name {
            _ if let Some(given) = given => self.objects.check(given),
            Some(name) if !self.names().contains(name) => Err(self.missing(name)),
            _ => Ok(()),
        }
    }

    fn missing(&self, name: &KernelName) -> ApiError {
        let here: Vec<String> = self.names().iter().map(ToString::to_string).collect();
        let hint = match (&self.dir, here.is_empty()) {
            (None, _) => "the host-agent has no WARREN_KERNELS".to_owned(),
            (Some(dir), true) => format!("put a kernel package into {}", dir.join(name.as_str()).display()),
            (Some(_), false) => format!("it has {}", here.join(", ")),
        };
        ApiError::failed_precondition(format!("this host has no kernel {name}")).hint(hint)
    }

    /// What a VM boots from: the kernel of the lab's it was given, or the one of that name here, or the host's own. Blocking.
    ///
    /// # Errors
    /// It is not here, or no kernel that can be used.
    pub fn get(&self, given: Option<&VmKernel>, name: Option<&KernelName>) -> Result<BootFiles, ApiError> {
        if let Some(given) = given {
            return self.objects.boot_files(given, &self.guest_agent);
        }
        let Some(name) = name else { return Ok(self.default.clone()) };
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = prepared.get(name) {
            return Ok(files.clone());
        }
        let dir = self.dir.as_ref().map(|dir| dir.join(name.as_str())).filter(|dir| dir.is_dir());
        let dir = dir.ok_or_else(|| self.missing(name))?;
        let files = self.prepare(&dir).map_err(|error| {
            ApiError::failed_precondition(format!("the kernel {name} cannot be used: {}", chain(&error)))
                .hint(format!("look into {} on that host", dir.display()))
        })?;
        prepared.insert(name.clone(), files.clone());
        Ok(files)
    }

    fn prepare(&self, dir: &Path) -> Result<BootFiles, KernelError> {
        let packages = package::files(dir)?;
        if !packages.is_empty() && !dir.join("boot").exists() {
            let agent = fs::read(&self.guest_agent).map_err(file_error(&self.guest_agent))?;
            return package::prepare(&self.state_dir, &packages, &agent);
        }
        let kernel = only(&dir.join("boot"), |name| name.starts_with("vmlinu"))?;
        let modules = match only(&dir.join("lib/modules"), |_| true) {
            Ok(modules) => Some(modules),
            Err(KernelError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        prepare(&self.state_dir, &kernel, modules.as_deref(), &self.guest_agent)
    }

    /// What `doctor` says of them. Blocking.
    pub fn checks(&self) -> Vec<Check> {
        let names = self.names();
        let bad = names
            .iter()
            .filter_map(|name| self.get(None, Some(name)).err())
            .map(|error| Check::fail("kernels", error.message).mend(error.hint.unwrap_or_default()));
        let (imported, broken) = self.objects.looked_through();
        let broken = broken.iter().map(|dir| {
            Check::fail("kernels", format!("{} holds no whole kernel", dir.display()))
                .mend("remove it, and import the kernel again if VMs of this host need it")
        });
        let bad: Vec<Check> = bad.chain(broken).collect();
        if !bad.is_empty() {
            return bad;
        }
        let others: String = names.iter().map(|name| format!(", {name}")).collect();
        let lab = match imported {
            0 => String::new(),
            count => format!(", and {count} of the lab's kernels"),
        };
        vec![Check::pass("kernels", format!("guests may boot {}{others}{lab}", self.default.release))]
    }
}

/// The only entry of a directory whose name fits.
fn only(dir: &Path, fits: impl Fn(&str) -> bool) -> Result<PathBuf, KernelError> {
    let entries = fs::read_dir(dir).map_err(file_error(dir))?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    let names = names.collect::<Result<Vec<_>, _>>().map_err(file_error(dir))?;
    let mut fitting = names.iter().filter(|name| name.to_str().is_some_and(&fits));
    match (fitting.next(), fitting.next()) {
        (Some(name), None) => Ok(dir.join(name)),
        (None, _) => Err(file_error(dir)(io::ErrorKind::NotFound.into())),
        (Some(_), Some(_)) => {
            Err(KernelError::Format { path: dir.to_owned(), why: "it holds more than one, which is not clear".into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::KernelOptions, *};

    #[test]
    fn kernels_are_found_by_name_and_what_is_wrong_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let default = BootFiles { vmlinux: "/v".into(), initramfs: "/i".into(), release: "6.1".into() };
        let objects = KernelObjects::open(&dir.path().join("state"), KernelOptions::default()).unwrap();
        let new = |of| Kernels::new(default.clone(), dir.path(), of, Path::new("/agent"), objects.clone());
        let none = new(None);
        let odd: KernelName = "odd-6.12".parse().unwrap();
        assert_eq!(none.get(None, None).unwrap().release, "6.1");
        assert!(none.get(None, Some(&odd)).unwrap_err().hint.unwrap().contains("WARREN_KERNELS"));
        let given = dir.path().join("kernels");
        let kernels = new(Some(&given));
        fs::create_dir_all(given.join("odd-6.12/boot")).unwrap();
        fs::create_dir_all(given.join("No Kernel")).unwrap();
        assert_eq!(kernels.names(), vec![odd.clone()]);
        assert!(kernels.check(None, Some(&"other".parse().unwrap())).unwrap_err().hint.unwrap().contains("odd-6.12"));
        kernels.check(None, Some(&odd)).unwrap();
        assert!(kernels.get(None, Some(&odd)).unwrap_err().message.contains("boot"), "it has no kernel");
        for name in ["vmlinuz-1", "vmlinuz-2"] {
            fs::write(given.join("odd-6.12/boot").join(name), "no kernel").unwrap();
        }
        assert!(kernels.get(None, Some(&odd)).unwrap_err().message.contains("more than one"));
        fs::remove_file(given.join("odd-6.12/boot/vmlinuz-2")).unwrap();
        let check = &kernels.checks()[0];
        assert!(check.message.contains("odd-6.12") && check.mend.is_some(), "{check:?}");
    }
}

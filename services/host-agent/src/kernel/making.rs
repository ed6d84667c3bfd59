//! **Making** boot files: a draft beside the others that is renamed when it is whole, so that a crash leaves none of it or all. Several
//! agents may make the same at once.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{
    BootFiles, FORMAT, KernelError, file_error,
    initramfs::{self, Module},
};
use crate::files;

/// How many are kept: some kernels under an old and a new guest-agent. A running VM needs its own no more; one that starts has it made
/// again.
const KEPT_MAX: usize = 16;
/// What is inside: the kernel, the initramfs, and the kernel's release.
const VMLINUX: &str = "vmlinux";
const INITRAMFS: &str = "initramfs.cpio";
const RELEASE: &str = "release";
/// How drafts' names begin; one of a process that died is removed once it is as old as no draft under way is.
const DRAFT: &str = ".making-";
const DRAFT_AGE: std::time::Duration = std::time::Duration::from_secs(3600);

/// One kernel's boot files, made or to be made.
pub(super) struct Making {
    root: PathBuf,
    dir: PathBuf,
}

impl Making {
    /// Those of that id.
    pub fn new(state_dir: &Path, id: &str) -> Result<Self, KernelError> {
        let root = state_dir.join("kernels");
        fs::create_dir_all(&root).map_err(file_error(&root))?;
        Ok(Self { dir: root.join(id), root })
    }

    /// Those of a kernel of that digest under that guest-agent.
    pub fn of_digest(state_dir: &Path, digest: &str, guest_agent: &Path) -> Result<Self, KernelError> {
        let agent = fs::read(guest_agent).map_err(file_error(guest_agent))?;
        let mut hasher = Sha256::new();
        hasher.update([FORMAT]);
        hasher.update(Sha256::digest(&agent));
        hasher.update(digest);
        Self::new(state_dir, &hex::encode(hasher.finalize())[..16])
    }

    /// Makes them and puts them in their place.
    pub fn make(
        &self,
        vmlinux: &[u8],
        modules: &[Module],
        guest_agent: &Path,
        release: &str,
    ) -> Result<(), KernelError> {
        let agent = fs::read(guest_agent).map_err(file_error(guest_agent))?;
        let draft = self.draft()?;
        self.finish(&draft, vmlinux, &initramfs::build(&agent, modules)?, release)?;
        self.publish(draft)
    }

    /// The release, if they are made already; that counts as a use.
    pub fn made(&self) -> Result<Option<String>, KernelError> {
        let path = self.dir.join(RELEASE);
        match fs::read_to_string(&path) {
            Ok(release) => {
                let now = File::open(&self.dir).and_then(|dir| dir.set_modified(SystemTime::now()));
                now.map_err(file_error(&self.dir))?;
                Ok(Some(release))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file_error(&path)(error)),
        }
    }

    /// Where they are.
    pub fn files(&self, release: String) -> BootFiles {
        BootFiles { vmlinux: self.dir.join(VMLINUX), initramfs: self.dir.join(INITRAMFS), release }
    }

    /// A directory to make them in; gone with the value unless it is published.
    pub fn draft(&self) -> Result<TempDir, KernelError> {
        tempfile::Builder::new().prefix(DRAFT).tempdir_in(&self.root).map_err(file_error(&self.root))
    }

    /// Writes them.
    pub fn finish(&self, draft: &TempDir, vmlinux: &[u8], initramfs: &[u8], release: &str) -> Result<(), KernelError> {
        for (name, bytes) in [(VMLINUX, vmlinux), (INITRAMFS, initramfs), (RELEASE, release.as_bytes())] {
            let path = draft.path().join(name);
            files::write_atomically(&path, bytes, 0o644).map_err(file_error(&path))?;
        }
        Ok(())
    }

    /// Puts them in their place.
    pub fn publish(&self, draft: TempDir) -> Result<(), KernelError> {
        match fs::rename(draft.path(), &self.dir) {
            Ok(()) => files::sync_parent(&self.dir).map_err(file_error(&self.dir))?,
            // Another agent was faster and made the same.
            Err(_) if self.dir.exists() => {}
            Err(error) => return Err(file_error(&self.dir)(error)),
        }
        Ok(())
    }
}

/// Removes what was not used for longest, and drafts of processes that died. To be called while nothing but the host's own kernel was
/// prepared, which was the last used then.
///
/// # Errors
/// The directory cannot be read, or one of them not be removed.
pub fn prune(state_dir: &Path) -> io::Result<()> {
    let (mut made, now) = (Vec::new(), SystemTime::now());
    for entry in fs::read_dir(state_dir.join("kernels"))? {
        let entry = entry?;
        let used = entry.metadata()?.modified()?;
        if !entry.file_name().as_encoded_bytes().starts_with(DRAFT.as_bytes()) {
            made.push((used, entry.path()));
        } else if now.duration_since(used).is_ok_and(|age| age > DRAFT_AGE) {
            files::remove_dir(&entry.path())?;
        }
    }
    made.sort_by(|one, other| other.cmp(one));
    made.iter().skip(KEPT_MAX).try_for_each(|(_, dir)| files::remove_dir(dir))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_not_used_for_longest_goes_and_so_do_drafts_of_the_dead() {
        let state = tempfile::tempdir().unwrap();
        let root = state.path().join("kernels");
        let aged = |name: &str, hours: u64| {
            let dir = root.join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join(RELEASE), "6.1").unwrap();
            File::open(&dir).unwrap().set_modified(SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
        };
        (0..20).for_each(|n| aged(&format!("k{n:02}"), 100 + n));
        aged(".making-dead", 2);
        aged(".making-now", 0);
        // The oldest is used again.
        assert_eq!(Making::new(state.path(), "k19").unwrap().made().unwrap().unwrap(), "6.1");
        prune(state.path()).unwrap();
        let left = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut left: Vec<String> = left.collect();
        left.sort();
        let mut expected: Vec<String> = (0..15).map(|n| format!("k{n:02}")).collect();
        expected.insert(0, ".making-now".to_owned());
        expected.push("k19".to_owned());
        assert_eq!(left, expected);
    }
}

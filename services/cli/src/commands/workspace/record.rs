//! The **record** of a workspace: what this machine put into a VM, and where the snapshot is that changes are told from.
//!
//! It lies in the user's state directory, one file a workspace. What comes out of a VM is never believed instead of it.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use contract::{ApiError, OperationId, VmId, VmName, worktree::DEFAULT_PATH};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use worktree::{Base, Git, References};

/// How many snapshots are remembered: of the last change, and of some before whose processes died half way.
const BASES_MAX: usize = 4;

/// What is remembered of one workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The VM.
    pub vm: VmId,
    /// Its name then; references have it in theirs.
    pub vm_name: VmName,
    /// The workspace's directory in the VM.
    pub path: String,
    /// The directory here it was taken from; none of an archive.
    #[serde(default)]
    pub source: Option<PathBuf>,
    /// The repository that the snapshot is in.
    pub repository: PathBuf,
    /// Whether that repository is only there for it.
    #[serde(default)]
    pub private: bool,
    /// What the VM's base may be, newest first: whether a change reached it is only known later.
    pub bases: Vec<(OperationId, Base)>,
}

impl Record {
    /// The snapshot a VM's base is, by the operation that made it.
    pub fn base(&self, generation: Option<OperationId>) -> Option<&Base> {
        self.bases.iter().find(|(known, _)| Some(*known) == generation).map(|(_, base)| base)
    }

    /// Notes another base.
    pub fn advance(&mut self, generation: OperationId, base: Base) {
        self.bases.insert(0, (generation, base));
        self.bases.truncate(BASES_MAX);
    }

    /// Takes that back: it did not come to be.
    pub fn retreat(&mut self, generation: OperationId) {
        self.bases.retain(|(known, _)| *known != generation);
    }

    /// Git in the repository of the snapshot.
    pub fn git(&self) -> Git {
        Git::at(&self.repository)
    }

    /// The names of its references.
    pub fn references(&self) -> References {
        References::new(&self.vm_name, &self.path)
    }

    /// Reads one; none where nothing was put there from here.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn load(vm: VmId, path: &str) -> Result<Option<Self>, ApiError> {
        let file = place(vm, path)?;
        match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| unreadable(&file, &error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(&file, &error)),
        }
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self) -> Result<(), ApiError> {
        let file = place(self.vm, &self.path)?;
        let dir = file.parent().unwrap_or(Path::new("."));
        let write = || {
            fs::create_dir_all(dir)?;
            let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
            temporary.write_all(&serde_json::to_vec_pretty(self)?)?;
            temporary.as_file().sync_all()?;
            temporary.persist(&file).map_err(|error| error.error)?;
            Ok::<_, io::Error>(())
        };
        write().map_err(|error| ApiError::failed_precondition(format!("{} cannot be written: {error}", file.display())))
    }

    /// Forgets it, with its references; with `all` those of commits that came back, too.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn forget(&self, all: bool) -> Result<(), ApiError> {
        // A repository that is gone has no references either.
        if self.repository.is_dir() && !self.private {
            self.references().remove(&self.git(), all)?;
        }
        let file = place(self.vm, &self.path)?;
        let remove = || {
            if self.private && self.repository.is_dir() {
                fs::remove_dir_all(&self.repository)?;
            }
            fs::remove_file(&file)
        };
        match remove() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ApiError::failed_precondition(format!("{} cannot be removed: {error}", file.display())))
            }
            _ => Ok(()),
        }
    }
}

fn unreadable(file: &Path, error: &io::Error) -> ApiError {
    ApiError::failed_precondition(format!("{} cannot be read: {error}", file.display()))
        .hint("remove it and prepare the workspace again: it only holds what this machine knows of it")
}

/// A name for files about one workspace.
fn name(vm: VmId, path: &str) -> String {
    if path == DEFAULT_PATH { vm.to_string() } else { format!("{vm}-{}", &hex::encode(Sha256::digest(path))[..12]) }
}

fn place(vm: VmId, path: &str) -> Result<PathBuf, ApiError> {
    Ok(state_dir()?.join("workspaces").join(format!("{}.json", name(vm, path))))
}

/// Where the snapshot of what is in no repository goes.
///
/// # Errors
/// The user has no home.
pub fn private(vm: VmId, path: &str) -> Result<PathBuf, ApiError> {
    Ok(state_dir()?.join("workspaces").join(format!("{}.git", name(vm, path))))
}

/// Where what must not be lost is kept: `$XDG_STATE_HOME/warren`, else `~/.local/state/warren`.
fn state_dir() -> Result<PathBuf, ApiError> {
    own_dir("XDG_STATE_HOME", ".local/state")
}

/// Where what can be made again is kept: `$XDG_CACHE_HOME/warren`, else `~/.cache/warren`.
///
/// # Errors
/// The user has no home.
pub fn cache_dir() -> Result<PathBuf, ApiError> {
    own_dir("XDG_CACHE_HOME", ".cache")
}

fn own_dir(variable: &str, below_home: &str) -> Result<PathBuf, ApiError> {
    let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = set(variable).or_else(|| set("HOME").map(|home| home.join(below_home)));
    base.map(|base| base.join("warren")).ok_or_else(|| {
        ApiError::failed_precondition("there is no place for what is known of workspaces")
            .hint(format!("set HOME or {variable}"))
    })
}

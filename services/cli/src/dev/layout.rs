//! The layout of a lab's state directory.

use std::{
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use contract::ApiError;

/// The longest path of a unix socket (sun_path holds 108 bytes with its NUL).
const SOCKET_PATH_MAX: usize = 107;
/// The name PostgreSQL gives its socket.
const SOCKET: &str = ".s.PGSQL.5432";

/// A lab's state directory.
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The layout below a directory, which need not exist.
    ///
    /// # Errors
    /// The path is unusable: not UTF-8, or too long for PostgreSQL's socket.
    pub fn new(dir: &Path) -> Result<Self, ApiError> {
        let refuse = |why: &str| ApiError::invalid_argument(format!("the state directory {} {why}", dir.display()));
        let absolute = std::path::absolute(dir).map_err(|error| refuse(&format!("cannot be used: {error}")))?;
        if absolute.to_str().is_none_or(|text| text.contains(|c: char| c.is_control() || c == ',')) {
            return Err(refuse("has characters that cannot be used"));
        }
        let layout = Self { dir: absolute };
        let socket = layout.postgres_socket_dir().join(SOCKET);
        if socket.as_os_str().as_bytes().len() > SOCKET_PATH_MAX {
            return Err(refuse("has too long a path: PostgreSQL's socket in it could not be opened")
                .hint("choose one with at most 80 characters"));
        }
        Ok(layout)
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the lab is to be like ([`super::plan::Plan`]).
    pub fn plan(&self) -> PathBuf {
        self.dir.join("lab.toml")
    }

    /// What its supervisor says of it ([`super::board::Board`]).
    pub fn board(&self) -> PathBuf {
        self.dir.join("status.json")
    }

    /// Locked by `up` and `down` while they work.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// A copy of `client.toml`.
    pub fn client_file(&self) -> PathBuf {
        self.dir.join("client.toml")
    }

    /// Where workspace-service keeps repositories that it fetched.
    pub fn fetched(&self) -> PathBuf {
        self.dir.join("fetched")
    }

    /// Logs.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// The log of one process.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// Where PostgreSQL's data and socket directories are; owned by its user.
    pub fn postgres(&self) -> PathBuf {
        self.dir.join("postgres")
    }

    /// PostgreSQL's data.
    pub fn postgres_data(&self) -> PathBuf {
        self.postgres().join("data")
    }

    /// PostgreSQL's socket directory: only its user and root get in, so that trust is safe.
    pub fn postgres_socket_dir(&self) -> PathBuf {
        self.postgres().join("run")
    }

    /// nats-server's configuration.
    pub fn nats_config(&self) -> PathBuf {
        self.dir.join("nats.conf")
    }

    /// JetStream's files.
    pub fn nats_data(&self) -> PathBuf {
        self.dir.join("nats")
    }

    /// The state directory of one host-agent.
    pub fn host(&self, id: &str) -> PathBuf {
        self.dir.join("hosts").join(id)
    }

    /// Makes the directories; those below the state directory only their owner may enter. The state directory itself can be passed
    /// through, because PostgreSQL runs as another user.
    ///
    /// # Errors
    /// The disk is full, or the directory may not be written.
    pub fn create(&self) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.dir)?;
        std::fs::set_permissions(&self.dir, std::fs::Permissions::from_mode(0o711))?;
        for dir in [self.logs(), self.dir.join("hosts")] {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        Ok(())
    }
}

/// Writes a file whole or not at all, for its owner only.
///
/// # Errors
/// The disk is full, or the directory may not be written.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let fresh = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = (|| {
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    })();
    if written.is_err()
        && let Err(error) = std::fs::remove_file(&fresh)
    {
        tracing::debug!(%error, "a half written file stays");
    }
    written
}

/// An error about a file of the lab.
pub fn at(path: &Path, what: &str, error: &io::Error) -> ApiError {
    let full = error.kind() == io::ErrorKind::StorageFull;
    let message = format!("{} cannot be {what}: {error}", path.display());
    if full { ApiError::resource_exhausted(message) } else { ApiError::failed_precondition(message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_too_deep_for_a_socket_is_refused_at_once() {
        let error = Layout::new(Path::new(&format!("/{}", "d".repeat(90)))).unwrap_err();
        assert!(error.message.contains("too long"), "{error}");
        assert!(Layout::new(Path::new("/var/lib/warren/dev")).is_ok());
    }
}

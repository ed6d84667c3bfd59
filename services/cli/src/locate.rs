//! Where the lab is. A running `warren dev` leaves a small file, `client.toml`, where every `warren` looks.

use std::{
    io,
    path::{Path, PathBuf},
};

use contract::ApiError;
use serde::{Deserialize, Serialize};

use crate::args::Global;

/// Names another directory than `/run/warren` or `$XDG_RUNTIME_DIR/warren`.
pub const RUNTIME_DIR_VARIABLE: &str = "WARREN_RUNTIME_DIR";

/// What a lab on this machine tells its clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientFile {
    /// Where its NATS listens.
    pub nats_url: String,
    /// Its state directory.
    pub state_dir: PathBuf,
}

impl ClientFile {
    /// Reads one; nothing where there is none.
    ///
    /// # Errors
    /// It cannot be read, or is not what a lab writes.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The directory of `client.toml`: `/run/warren` for root, else `$XDG_RUNTIME_DIR/warren`.
pub fn runtime_dir() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os(RUNTIME_DIR_VARIABLE).filter(|dir| !dir.is_empty()) {
        return Some(dir.into());
    }
    if nix::unistd::geteuid().is_root() {
        return Some("/run/warren".into());
    }
    let dir = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty())?;
    Some(PathBuf::from(dir).join("warren"))
}

/// The URL of the lab's NATS.
///
/// # Errors
/// Nobody has said where it is.
pub fn nats_url(global: &Global) -> Result<String, ApiError> {
    if let Some(url) = global.nats.as_ref().filter(|url| !url.is_empty()) {
        return Ok(url.clone());
    }
    let mut places: Vec<PathBuf> = runtime_dir().into_iter().collect();
    // A lab that root runs can be seen by everybody on the machine, as its NATS can.
    if std::env::var_os(RUNTIME_DIR_VARIABLE).is_none() && !places.iter().any(|dir| dir == Path::new("/run/warren")) {
        places.push("/run/warren".into());
    }
    for path in places.iter().map(|dir| dir.join("client.toml")) {
        match ClientFile::read(&path) {
            Ok(Some(file)) => return Ok(file.nats_url),
            Ok(None) => {}
            Err(error) => {
                let message = format!("{} cannot be used: {error}", path.display());
                return Err(ApiError::failed_precondition(message).hint("name the lab's NATS with --nats"));
            }
        }
    }
    Err(ApiError::unavailable("no lab is known: none runs on this machine and no NATS is named")
        .hint("start one with `warren dev up`, or name one with --nats or WARREN_NATS_URL"))
}

//! A **served** tree: one that nobody hands in, so that this service fetches it and sends it itself: a commit of a git repository, or an
//! archive of an object store.
//!
//! What is fetched lies in a cache directory ([`ServedConfig::cache`]): bare repositories below `remotes`, of which those that were used
//! last stay, and what is being sent below `scratch`.

mod cache;
mod line;
mod object;

use std::{path::PathBuf, sync::Arc};

use bus::Bus;
use contract::{
    ApiError, ErrorCode, FileName,
    worktree::{About, History, Source},
};
use tempfile::TempDir;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tree::Tree;
use worktree::{Captured, Checkout, Hosts, Remote, Stop};

use line::Lines;

pub use cache::{BYTES as CACHE_BYTES, sweep};

/// How many trees one process fetches and sends at once: each has a git process or an archive to read, and a thread.
pub const TURNS: usize = 4;

/// Leave to fetch a tree and to send it.
type Turn = OwnedSemaphorePermit;

/// How served trees are fetched.
#[derive(Clone, Debug)]
pub struct ServedConfig {
    /// `WARREN_GIT_CACHE`: where fetched repositories are kept.
    pub cache: PathBuf,
    /// `WARREN_GIT_CACHE_SIZE`: how many bytes of them stay.
    pub cache_bytes: u64,
    /// `WARREN_GIT_ALLOW_FILE`: whether `file://` may name repositories of this machine.
    pub allow_file: bool,
    /// `WARREN_GIT_HOSTS`: which hosts git URLs and submodules may name; left out, all.
    pub hosts: Option<Hosts>,
    /// `WARREN_GIT_CREDENTIALS`: a file of git-credential-store(1).
    pub credentials: Option<PathBuf>,
}

/// Fetches trees.
pub struct Sources {
    config: ServedConfig,
    turns: Arc<Semaphore>,
    lines: Lines,
}

/// What was fetched, there for as long as this is.
pub struct Fetched {
    /// The files.
    pub tree: Arc<Tree>,
    /// What they were taken from.
    pub about: About,
    /// What was left out.
    pub warnings: Vec<String>,
    files: Arc<Files>,
    /// Its turn ends with it.
    _turn: Turn,
}

/// Where the files lie that a tree names.
enum Files {
    Captured(Box<Captured>),
    #[expect(dead_code, reason = "held for as long as it is read")]
    Unpacked(Unpacked),
}

impl Fetched {
    /// Takes note that a file was not what the tree says when it was sent: what the cache has of it is fetched or made anew.
    pub async fn distrust(&self, path: FileName) {
        let files = self.files.clone();
        let noted = tokio::task::spawn_blocking(move || {
            if let Files::Captured(captured) = &*files {
                captured.distrust(&path);
            }
        });
        if let Err(error) = noted.await {
            tracing::warn!(%error, "what the cache has was not looked at");
        }
    }
}

/// A directory of unpacked files that goes with its scope, whatever modes they came with.
struct Unpacked(TempDir);

impl Drop for Unpacked {
    fn drop(&mut self) {
        archive::make_removable(self.0.path());
    }
}

impl Sources {
    /// None fetched yet.
    pub fn new(config: ServedConfig) -> Self {
        Self { config, turns: Arc::new(Semaphore::new(TURNS)), lines: Lines::default() }
    }

    /// Whether such a source is fetched here.
    pub fn serves(source: &Source) -> bool {
        matches!(source, Source::Git { .. } | Source::Object(_))
    }

    /// Fetches a tree, when it is its turn. Where the wait for it is given up, what works for it is ended, and its turn is free when that
    /// has ended.
    ///
    /// # Errors
    /// It is not there, may not be read, or is too large; this machine lacks git, or room.
    pub async fn fetch(&self, bus: &Bus, source: &Source) -> Result<Fetched, ApiError> {
        match source {
            Source::Git { url, reference, history } => self.git(url, reference.as_deref(), *history).await,
            Source::Object(name) => object::fetch(bus, name, &self.config.cache, self.turn().await?).await,
            Source::Upload { .. } | Source::Host { .. } => {
                Err(ApiError::internal("such a source is not fetched by workspace-service"))
            }
        }
    }

    async fn turn(&self) -> Result<Turn, ApiError> {
        let turn = self.turns.clone().acquire_owned().await;
        turn.map_err(|_| ApiError::unavailable("workspace-service is shutting down"))
    }

    async fn git(&self, url: &str, reference: Option<&str>, history: History) -> Result<Fetched, ApiError> {
        // Those who want the same repository have one turn among them: only one of them could use it.
        let line = self.lines.first(url).await;
        let turn = self.turn().await?;
        let stop = Stop::default();
        let remote = Remote {
            cache: self.config.cache.clone(),
            url: url.to_owned(),
            allow_file: self.config.allow_file,
            hosts: self.config.hosts.clone(),
            credentials: self.config.credentials.clone(),
            stop: stop.clone(),
        };
        let checkout = Checkout { reference: reference.map(str::to_owned), history };
        let (cache, bytes) = (self.config.cache.clone(), self.config.cache_bytes);
        let fetching = tokio::task::spawn_blocking(move || {
            // Whether or not anybody waits for it still.
            let _line = line;
            let captured = {
                let _use = cache::used(&cache)?;
                remote.capture(&checkout)?
            };
            cache::evict(&cache, bytes);
            Ok::<_, ApiError>((captured, turn))
        });
        let _given_up = stop.on_drop();
        let fetched = fetching.await.map_err(|error| ApiError::internal(format!("fetching failed: {error}")))?;
        let (mut captured, turn) = fetched.map_err(of_settings)?;
        Ok(Fetched {
            tree: Arc::new(std::mem::take(&mut captured.tree)),
            about: captured.about.clone(),
            warnings: std::mem::take(&mut captured.warnings),
            files: Arc::new(Files::Captured(Box::new(captured))),
            _turn: turn,
        })
    }
}

/// Where an operator's setting is the reason, names it.
fn of_settings(error: ApiError) -> ApiError {
    match error.code {
        ErrorCode::PermissionDenied => error.hint("the operator of workspace-service lists hosts in WARREN_GIT_HOSTS"),
        _ => error,
    }
}

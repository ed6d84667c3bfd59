//! A **blob** in use: bytes of a file that may still grow, and what became of them.
//!
//! The download that makes it grow holds its [`Content`]; whoever wants it holds the [`Blob`]. With the last of these the download ends,
//! and the blob may be removed when the cache is too large.

use std::{
    fs::File,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use contract::ApiError;
use tokio_util::sync::CancellationToken;

use super::{Cache, reader::BlobReader};

/// How often who waits for bytes looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);

/// Somebody's hold on a blob.
pub(in crate::image) struct Blob {
    pub(super) content: Arc<Content>,
    pub(super) cache: Arc<Cache>,
    /// Ends the download.
    pub(super) unwanted: CancellationToken,
}

impl Drop for Blob {
    fn drop(&mut self) {
        self.unwanted.cancel();
    }
}

impl Blob {
    /// Its bytes from the beginning, as they come; blocking. It ends early when `cancel` does.
    pub(in crate::image) fn reader(self: &Arc<Self>, cancel: CancellationToken) -> BlobReader {
        BlobReader::new(self.clone(), cancel)
    }

    /// Finds out whether what was read of it is what it should be: waits for its end, and reads it over where it was here before.
    pub(in crate::image) async fn prove(self: &Arc<Self>) {
        if !self.content.was_read() || self.content.whole().await.is_err() || !self.content.is_unproven() {
            return;
        }
        let mut reader = self.reader(CancellationToken::new());
        // What it finds stands in the content.
        let read = tokio::task::spawn_blocking(move || std::io::copy(&mut reader, &mut std::io::sink()).map(drop));
        drop(read.await);
    }

    /// What is seen of it.
    pub(in crate::image) fn content(&self) -> &Arc<Content> {
        &self.content
    }
}

/// A blob's bytes.
pub(in crate::image) struct Content {
    digest: String,
    size: u64,
    /// Held for moments, never across I/O.
    state: Mutex<State>,
    /// Told at every change of `state`.
    changed: Condvar,
    /// Cancelled once there is an outcome.
    ended: CancellationToken,
}

#[derive(Default)]
struct State {
    file: Option<Arc<File>>,
    /// So many bytes of the file are there to be read.
    written: u64,
    /// It was here before this process: whoever reads it checks it.
    unproven: bool,
    /// Somebody has read some of it.
    read: bool,
    outcome: Option<Result<(), Broken>>,
}

/// Why a blob did not come.
#[derive(Clone, Debug)]
pub(in crate::image) struct Broken {
    pub error: ApiError,
    /// Whether to begin anew may help at once: what was there was damaged, and is gone.
    pub anew: bool,
}

impl From<ApiError> for Broken {
    fn from(error: ApiError) -> Self {
        Self { error, anew: false }
    }
}

/// What a reader finds.
pub(super) enum Found {
    /// Bytes up to there.
    Bytes(Arc<File>, u64),
    /// All was read; `true` where it is not proven yet.
    End(bool),
}

impl Content {
    pub(super) fn new(digest: &str, size: u64) -> Self {
        Self {
            digest: digest.to_owned(),
            size,
            state: Mutex::default(),
            changed: Condvar::new(),
            ended: CancellationToken::new(),
        }
    }

    pub(in crate::image) fn digest(&self) -> &str {
        &self.digest
    }

    pub(in crate::image) fn size(&self) -> u64 {
        self.size
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file, with so many bytes in it.
    pub(super) fn begin(&self, file: Arc<File>, written: u64, unproven: bool) {
        let mut state = self.state();
        (state.file, state.written, state.unproven) = (Some(file), written, unproven);
        self.changed.notify_all();
    }

    pub(super) fn grow(&self, written: u64) {
        self.state().written = written;
        self.changed.notify_all();
    }

    /// The first outcome stays.
    pub(super) fn end(&self, outcome: Result<(), Broken>) {
        self.state().outcome.get_or_insert(outcome);
        self.changed.notify_all();
        self.ended.cancel();
    }

    /// It came, and turned out to be damaged.
    pub(super) fn spoil(&self, broken: Broken) {
        self.state().outcome = Some(Err(broken));
        self.changed.notify_all();
    }

    /// Whether it was here before this process and is not proven yet.
    pub(super) fn is_unproven(&self) -> bool {
        self.state().unproven
    }

    fn was_read(&self) -> bool {
        self.state().read
    }

    /// How many bytes are there.
    pub(in crate::image) fn written(&self) -> u64 {
        self.state().written
    }

    /// Why it did not come, if so.
    pub(in crate::image) fn broken(&self) -> Option<Broken> {
        self.state().outcome.clone().and_then(Result::err)
    }

    /// Waits for the end of the download.
    ///
    /// # Errors
    /// Why it failed.
    pub(in crate::image) async fn whole(&self) -> Result<(), ApiError> {
        self.ended.cancelled().await;
        match self.broken() {
            Some(broken) => Err(broken.error),
            None => Ok(()),
        }
    }

    /// Waits for bytes beyond `position`. No wake-up is missed: what is waited for changes under the lock only.
    pub(super) fn beyond(&self, position: u64, cancel: &CancellationToken) -> Result<Found, ApiError> {
        let mut state = self.state();
        loop {
            // Also where all is there: whoever reads may have long to do with it.
            if cancel.is_cancelled() {
                return Err(ApiError::cancelled("the staging was discarded"));
            }
            if let Some(file) = state.file.clone().filter(|_| state.written > position) {
                state.read = true;
                return Ok(Found::Bytes(file, state.written));
            }
            match &state.outcome {
                Some(Ok(())) => return Ok(Found::End(state.unproven)),
                Some(Err(broken)) => return Err(broken.error.clone()),
                None => {}
            }
            state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

//! One **download** of a blob, shared by everybody who wants it: from where a cut-off one had come to, by ranges, from one endpoint after
//! the other, until it is whole and proven.

use std::sync::Arc;

use bytes::Bytes;
use contract::ApiError;
use reqwest::header::HeaderValue;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Cache,
    blob::{Broken, Content},
    files::{self, Local, Written},
};
use crate::image::{
    manifest::Descriptor,
    registry::{Failure, Registry, Tour},
};

/// Pieces between the network and the disk, each of at most what the HTTP client reads at once (some hundred kilobytes).
const QUEUE: usize = 4;
/// A try that brought so many bytes was no failure of whom it asked.
const PROGRESS: u64 = 1 << 20;

/// A download to be run.
pub(super) struct Download {
    pub cache: Arc<Cache>,
    pub origin: Arc<Registry>,
    pub blob: Descriptor,
    pub content: Arc<Content>,
    pub unwanted: CancellationToken,
    /// Held by whoever touches the blob's files.
    pub turn: Arc<tokio::sync::Mutex<()>>,
}

/// How the bytes were put together.
#[derive(Default)]
struct Came {
    /// Which endpoint gave bytes last.
    from: Option<usize>,
    /// How many answers gave bytes.
    answers: usize,
}

/// Ends the content should the download panic, so that nobody waits for ever.
struct Ending(Arc<Content>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end(Err(ApiError::internal("a download ended without saying why").into()));
    }
}

impl Download {
    /// Does it; the content's outcome says how it went.
    pub(super) async fn run(self) {
        let _ending = Ending(self.content.clone());
        let outcome = self.whole().await;
        if let Err(broken) = &outcome {
            tracing::debug!(blob.digest = %self.blob.digest, error = %broken.error, "a download ended early");
        }
        self.content.end(outcome);
    }

    async fn whole(&self) -> Result<(), Broken> {
        let stopped = || ApiError::cancelled("nobody wants the download any more");
        let turn = tokio::select! {
            turn = self.turn.clone().lock_owned() => turn,
            () = self.unwanted.cancelled() => return Err(stopped().into()),
        };
        let (cache, digest, size) = (self.cache.clone(), self.blob.digest.clone(), self.blob.size);
        let opened = tokio::task::spawn_blocking(move || files::open(&cache, &digest, size)).await;
        let writer = match opened.map_err(|error| ApiError::internal(format!("a blob was not opened: {error}")))?? {
            Local::Whole(file) => {
                self.content.begin(file, size, !self.cache.is_proven(&self.blob.digest));
                return Ok(());
            }
            Local::Part(writer) => writer,
        };
        let begun = writer.begun();
        self.content.begin(writer.file(), begun, false);
        let (pieces, queue) = mpsc::channel(QUEUE);
        let content = self.content.clone();
        let writing = tokio::task::spawn_blocking(move || writer.run(queue, &content, turn));
        let mut came = Came::default();
        let fed = tokio::select! {
            fed = self.feed(pieces, begun, &mut came) => fed,
            () = self.unwanted.cancelled() => Err(stopped()),
        };
        let written = writing.await.map_err(|error| ApiError::internal(format!("a blob was not written: {error}")))?;
        match written? {
            Written::Whole => {
                self.cache.proven(&self.blob.digest);
                Ok(())
            }
            Written::Part => Err(fed.err().unwrap_or_else(|| ApiError::internal("a download ended too early")).into()),
            Written::Nothing(error) => Err(self.judge(error, begun, &came)),
        }
    }

    /// Whose fault wrong bytes are: who gave all of them is not asked again; of several, nobody knows.
    fn judge(&self, error: ApiError, begun: u64, came: &Came) -> Broken {
        let anew = match came.from {
            Some(endpoint) if begun == 0 && came.answers == 1 => self.origin.distrust(endpoint, &self.blob.digest),
            _ => true,
        };
        tracing::warn!(blob.digest = %self.blob.digest, %error, anew, "a download was damaged");
        Broken { error, anew }
    }

    /// Gives the writer what is missing.
    async fn feed(&self, pieces: mpsc::Sender<Bytes>, begun: u64, came: &mut Came) -> Result<(), ApiError> {
        let mut at = begun;
        if at == self.blob.size {
            return Ok(());
        }
        let mut tour = self.origin.tour(&self.blob.digest)?;
        let mut validator = None;
        loop {
            let before = at;
            let tried = {
                let _slot = self.cache.slots.acquire().await;
                self.attempt(&tour, &pieces, &mut at, &mut validator, came).await
            };
            let Err(failure) = tried else { return Ok(()) };
            if pieces.is_closed() {
                return Err(*failure.error);
            }
            let asked = tour.at();
            tokio::time::sleep(tour.failed(failure, at - before >= PROGRESS)?).await;
            if tour.at() != asked {
                validator = None;
            }
        }
    }

    /// One answer: from `at` on, which moves along.
    async fn attempt(
        &self,
        tour: &Tour,
        pieces: &mpsc::Sender<Bytes>,
        at: &mut u64,
        validator: &mut Option<HeaderValue>,
        came: &mut Came,
    ) -> Result<(), Failure> {
        let size = self.blob.size;
        let opened = self.origin.blob(tour.at(), &self.blob, *at, validator.as_ref()).await?;
        *validator = opened.validator;
        let mut body = opened.body;
        // Who knows no ranges begins at the beginning: what is here already is passed over.
        let mut skip = *at - opened.from;
        let mut first = true;
        while *at < size {
            let Some(mut piece) = body.next().await? else {
                return Err(Failure::again(ApiError::unavailable(format!(
                    "the download of {} ended after {at} of {size} bytes",
                    self.blob.digest
                ))));
            };
            let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            skip -= passed as u64;
            drop(piece.split_to(passed));
            piece.truncate(usize::try_from(size - *at).unwrap_or(usize::MAX));
            if piece.is_empty() {
                continue;
            }
            if std::mem::take(&mut first) {
                (came.from, came.answers) = (Some(tour.at()), came.answers + 1);
            }
            let length = piece.len() as u64;
            // Whoever writes has ended: it says why itself.
            if pieces.send(piece).await.is_err() {
                return Err(Failure::elsewhere(ApiError::internal("the blob cannot be written")));
            }
            *at += length;
        }
        Ok(())
    }
}

//! An **upload** of one blob (distribution-spec 1.1, "Pushing blobs"): begun by `POST`, sent by `PATCH`, ended by `PUT`.
//!
//! All that is left goes in one `PATCH`, as docker does it: not every registry takes several. Where it breaks, the registry is asked how much it
//! has (`GET` of the upload's location) and the rest is sent with `Content-Range`; a registry that does not know any more gets a new upload.

use std::{
    io::SeekFrom,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use contract::ApiError;
use futures::{StreamExt, TryStreamExt};
use reqwest::{
    Body, RequestBuilder, Response, StatusCode, Url,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LOCATION, RANGE},
};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::{
    Failure, Tour,
    endpoint::{Endpoint, authorized},
};
use crate::image::{progress::Reporter, storage_error};

/// How much of a file is read at once; a registry takes at least that much in the time it may say nothing.
const PIECE: usize = 256 << 10;
/// How long a registry may take over a blob it has in full: some read it again, or copy it to their storage.
const COMMIT: Duration = Duration::from_secs(300);

/// What a blob consists of.
#[derive(Clone, Copy)]
pub(in crate::image) enum Content<'a> {
    File(&'a Path),
    Bytes(&'a [u8]),
}

/// What is uploaded.
#[derive(Clone, Copy)]
pub(super) struct Blob<'a> {
    pub digest: &'a str,
    pub size: u64,
    pub content: Content<'a>,
}

/// One blob on its way to a registry.
pub(super) struct Upload<'a> {
    endpoint: &'a Endpoint,
    what: &'a str,
    blob: Blob<'a>,
    /// A repository of the registry that has it.
    from: Option<&'a str>,
    told: Told<'a>,
    session: Option<Session>,
    /// Whether one was ever begun.
    begun: bool,
    /// Whether the registry is thought able to go on with one.
    resumes: bool,
}

/// An upload as the registry knows it.
#[derive(Clone)]
struct Session {
    url: Url,
    /// How many bytes it has, as it says.
    has: u64,
    resumed: bool,
}

impl<'a> Upload<'a> {
    pub(super) fn new(
        endpoint: &'a Endpoint,
        what: &'a str,
        blob: Blob<'a>,
        from: Option<&'a str>,
        progress: &'a Reporter,
    ) -> Self {
        let told = Told { progress, done: AtomicU64::new(0) };
        Self { endpoint, what, blob, from, told, session: None, begun: false, resumes: true }
    }

    /// Uploads it unless it is there; gives how many bytes the registry did not have.
    pub(super) async fn run(mut self) -> Result<u64, ApiError> {
        let (mut tour, mut most) = (Tour::of_one(), 0);
        loop {
            let failure = match self.round().await {
                Ok(lacked) => {
                    self.told.set(self.blob.size);
                    return Ok(lacked);
                }
                Err(failure) => failure,
            };
            // A registry that keeps a piece each time is patient work; one that keeps nothing is given up.
            let has = self.session.as_ref().map_or(0, |session| session.has);
            let progressed = has >= most + PIECE as u64;
            most = most.max(has);
            tokio::time::sleep(tour.failed(failure, progressed)?).await;
        }
    }

    async fn round(&mut self) -> Result<u64, Failure> {
        // Also before a repeat: the answer to a push that succeeded may have been lost.
        if self.is_there().await? {
            return Ok(if self.begun { self.blob.size } else { 0 });
        }
        if let Some(session) = self.session.clone() {
            self.session = self.asked_for(session).await?;
        }
        let mut session = match self.session.clone() {
            Some(session) => session,
            None => match self.begin().await? {
                Some(session) => session,
                None => return Ok(0),
            },
        };
        self.begun = true;
        self.told.set(session.has);
        self.session = Some(session.clone());
        if session.has < self.blob.size {
            let response = self.streamed(&session).await?;
            session.url = self.taken(response, &session, &[StatusCode::ACCEPTED, StatusCode::NO_CONTENT]).await?;
            session.has = self.blob.size;
            self.session = Some(session.clone());
        }
        let mut url = session.url.clone();
        url.query_pairs_mut().append_pair("digest", self.blob.digest);
        let response = self.waited(COMMIT, || self.endpoint.client().put(url.clone()).header(CONTENT_LENGTH, 0), &url);
        let response = response.await?;
        let done = [StatusCode::CREATED, StatusCode::NO_CONTENT, StatusCode::OK];
        self.taken(response, &session, &done).await?;
        Ok(self.blob.size)
    }

    async fn is_there(&self) -> Result<bool, Failure> {
        let url = self.endpoint.url(&format!("blobs/{}", self.blob.digest))?;
        let response = self.endpoint.asked(|| self.endpoint.client().head(url.clone())).await?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refused(response).await),
        }
    }

    /// Begins one; nothing is to be sent where the registry took the blob over from another repository.
    async fn begin(&mut self) -> Result<Option<Session>, Failure> {
        let mut url = self.endpoint.url("blobs/uploads/")?;
        if let Some(from) = self.from {
            url.query_pairs_mut().append_pair("mount", self.blob.digest).append_pair("from", from);
        }
        let post = || self.endpoint.client().post(url.clone()).header(CONTENT_LENGTH, 0);
        let response = self.endpoint.asked(post).await?;
        let mounting = self.from.take().is_some();
        match response.status() {
            StatusCode::CREATED if mounting => Ok(None),
            StatusCode::ACCEPTED => Ok(Some(Session { url: self.location(&response, None)?, has: 0, resumed: false })),
            // Whoever may not read the other repository sends what it has.
            status if mounting && status.is_client_error() => Box::pin(self.begin()).await,
            _ => Err(self.refused(response).await),
        }
    }

    /// Asks how far one came; nothing where the registry does not know it any more.
    async fn asked_for(&self, mut session: Session) -> Result<Option<Session>, Failure> {
        if !self.resumes {
            return Ok(None);
        }
        let (client, url) = (self.endpoint.client(), session.url.clone());
        let response = self.waited(self.endpoint.stall(), || client.get(url.clone()), &url).await?;
        if !response.status().is_success() {
            return match response.status().is_client_error() && response.status() != StatusCode::TOO_MANY_REQUESTS {
                true => Ok(None),
                false => Err(self.refused(response).await),
            };
        }
        let range = response.headers().get(RANGE).and_then(|range| range.to_str().ok()).and_then(received);
        let Some(has) = range.filter(|has| *has <= self.blob.size) else { return Ok(None) };
        session.url = self.location(&response, Some(&session.url))?;
        (session.has, session.resumed) = (has, true);
        Ok(Some(session))
    }

    /// Sends what the registry lacks, for as long as it takes some of it.
    async fn streamed(&self, session: &Session) -> Result<Response, Failure> {
        let (size, from, url) = (self.blob.size, session.has, &session.url);
        let taken: Arc<AtomicU64> = Arc::default();
        let unread: Arc<OnceLock<ApiError>> = Arc::default();
        let send = async |shown: Option<HeaderValue>| {
            taken.store(0, Ordering::Relaxed);
            self.told.set(from);
            let mut request = self.endpoint.client().patch(url.clone());
            request = request.header(CONTENT_TYPE, "application/octet-stream").header(CONTENT_LENGTH, size - from);
            if from > 0 {
                request = request.header(CONTENT_RANGE, format!("{from}-{}", size - 1));
            }
            let body = self.body(from, &taken, &unread).await?;
            let mut sending = std::pin::pin!(authorized(request, shown).body(body).send());
            let mut seen = 0;
            loop {
                // What stands in the kernel's buffers at the end is on its way still.
                let patience = self.endpoint.stall() * if seen == size - from { 2 } else { 1 };
                match tokio::time::timeout(patience, &mut sending).await {
                    Ok(Ok(response)) => return Ok(response),
                    Ok(Err(error)) => {
                        let own = unread.get().cloned().map(Failure::elsewhere);
                        return Err(own.unwrap_or_else(|| Failure::broken(self.endpoint.name(), &error)));
                    }
                    Err(_) => {}
                }
                let now = taken.load(Ordering::Relaxed);
                self.told.set(from + now);
                if now == seen {
                    return Err(self.stalled(patience));
                }
                seen = now;
            }
        };
        let mut ticks = tokio::time::interval(Duration::from_millis(200));
        let mut sending = std::pin::pin!(self.granted(url, send));
        loop {
            tokio::select! {
                answer = &mut sending => return answer,
                _ = ticks.tick() => self.told.set(from + taken.load(Ordering::Relaxed)),
            }
        }
    }

    /// The blob from a place in it on; counts what is taken of it.
    async fn body(&self, from: u64, taken: &Arc<AtomicU64>, unread: &Arc<OnceLock<ApiError>>) -> Result<Body, Failure> {
        let taken = taken.clone();
        let count = move |bytes: &bytes::Bytes| {
            taken.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        };
        let path = match self.blob.content {
            Content::Bytes(bytes) => {
                let rest = usize::try_from(from).ok().and_then(|from| bytes.get(from..)).unwrap_or_default();
                let rest = bytes::Bytes::copy_from_slice(rest);
                count(&rest);
                return Ok(rest.into());
            }
            Content::File(path) => path.to_owned(),
        };
        let wrong = |error| Failure::elsewhere(storage_error(&path, &error));
        let mut file = tokio::fs::File::open(&path).await.map_err(wrong)?;
        file.seek(SeekFrom::Start(from)).await.map_err(wrong)?;
        let unread = unread.clone();
        let pieces = ReaderStream::with_capacity(file.take(self.blob.size - from), PIECE)
            .inspect_ok(count)
            .inspect_err(move |error| drop(unread.set(storage_error(&path, error))));
        Ok(Body::wrap_stream(pieces.boxed()))
    }

    /// Sends a request to an upload's location, and waits so long for the answer.
    async fn waited(
        &self,
        patience: Duration,
        request: impl Fn() -> RequestBuilder,
        url: &Url,
    ) -> Result<Response, Failure> {
        let sending = self.granted(url, async |shown| {
            let sent = authorized(request(), shown).send().await;
            sent.map_err(|error| Failure::broken(self.endpoint.name(), &error))
        });
        tokio::time::timeout(patience, sending).await.map_err(|_| self.stalled(patience))?
    }

    /// Only the registry itself is told who asks, not where it sends uploads to.
    async fn granted<F: Future<Output = Result<Response, Failure>>>(
        &self,
        url: &Url,
        send: impl Fn(Option<HeaderValue>) -> F,
    ) -> Result<Response, Failure> {
        if self.endpoint.url("")?.origin() == url.origin() {
            return self.endpoint.granted(send).await;
        }
        send(None).await
    }

    /// The upload's location after an answer that should be one of these.
    async fn taken(&mut self, response: Response, session: &Session, wanted: &[StatusCode]) -> Result<Url, Failure> {
        let status = response.status();
        if wanted.contains(&status) {
            return self.location(&response, Some(&session.url));
        }
        let mut failure = self.refused(response).await;
        let refused = matches!(status.as_u16(), 400 | 404 | 409 | 416 | 422);
        if refused {
            self.session = None;
        }
        // Gone, or begun anew better than gone on with: neither says anything of the blob.
        if refused && (session.resumed || status == StatusCode::NOT_FOUND) {
            self.resumes &= !session.resumed;
            failure = Failure::again(*failure.error);
        }
        Err(failure)
    }

    fn location(&self, response: &Response, before: Option<&Url>) -> Result<Url, Failure> {
        let Some(text) = response.headers().get(LOCATION) else {
            return before.cloned().ok_or_else(|| self.endpoint.nonsense("no place to upload to"));
        };
        let url = text.to_str().ok().and_then(|text| response.url().join(text).ok());
        let mut url = url.ok_or_else(|| self.endpoint.nonsense("a place to upload to that is no URL"))?;
        let own = self.endpoint.url("")?;
        if own.scheme() == "https" && url.scheme() != "https" {
            // Registries behind a proxy that encrypts for them do not know it.
            let upgraded = url.host_str() == own.host_str() && url.set_scheme("https").is_ok();
            if !upgraded {
                return Err(self.endpoint.nonsense("a place to upload to where nothing is encrypted"));
            }
        }
        Ok(url)
    }

    async fn refused(&self, response: Response) -> Failure {
        Failure::refused(self.endpoint.name(), self.what, response).await
    }

    fn stalled(&self, patience: Duration) -> Failure {
        let (registry, digest, seconds) = (self.endpoint.name(), self.blob.digest, patience.as_secs());
        Failure::again(ApiError::unavailable(format!("the upload of {digest} to {registry} stalled for {seconds} s")))
    }
}

/// How many bytes a registry has by its `Range: 0-<last>`. Of one byte it says the same as of none: then none is right too, as what is sent twice is
/// refused and begun anew.
fn received(range: &str) -> Option<u64> {
    let last: u64 = range.trim().trim_start_matches("bytes=").strip_prefix("0-")?.parse().ok()?;
    Some(if last == 0 { 0 } else { last.checked_add(1)? })
}

/// How much of the blob is told as done.
struct Told<'a> {
    progress: &'a Reporter,
    done: AtomicU64,
}

impl Told<'_> {
    fn set(&self, now: u64) {
        let before = self.done.swap(now, Ordering::Relaxed);
        match now.checked_sub(before) {
            Some(more) => self.progress.add(more),
            None => self.progress.take_back(before - now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_has_is_read_from_its_range() {
        assert_eq!(received("0-99"), Some(100));
        assert_eq!(received("bytes=0-99"), Some(100));
        assert_eq!(received("0-0"), Some(0));
        for wrong in ["", "1-5", "0--1", "0-x", "0-18446744073709551615"] {
            assert_eq!(received(wrong), None, "{wrong}");
        }
    }
}

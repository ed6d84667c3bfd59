//! **Bodies** of answers: never longer than what was asked for, never slower than somebody who means it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use contract::ApiError;
use futures::{StreamExt, stream::BoxStream};
use reqwest::Response;
use tokio::time::timeout;

use super::answer::{Failure, told};

/// The bytes a second that a registry gives at least: less is a stall in disguise.
const RATE_MIN: u64 = 4 << 10;

/// Reads a small answer to its end.
pub(super) async fn bounded(registry: &str, mut response: Response, limit: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Failure::broken(registry, &error))? {
        if (bytes.len() + chunk.len()) as u64 > limit {
            let error = format!("{registry} answers with more than {limit} bytes, the most that is taken there");
            return Err(Failure::elsewhere(ApiError::invalid_argument(error)));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// A blob's bytes as they come.
pub(in crate::image) struct Body {
    pub(super) registry: String,
    pub(super) digest: String,
    stream: BoxStream<'static, reqwest::Result<Bytes>>,
    stall: Duration,
    /// How long was waited for so many bytes, until it was judged.
    waited: Duration,
    came: u64,
}

impl Body {
    pub(super) fn new(registry: &str, digest: &str, response: Response, stall: Duration) -> Self {
        let (registry, digest) = (registry.to_owned(), digest.to_owned());
        Self { registry, digest, stream: response.bytes_stream().boxed(), stall, waited: Duration::ZERO, came: 0 }
    }

    /// The next bytes; `None` at the end, wherever that is.
    ///
    /// # Errors
    /// It broke off, stalled, or is slower than anybody who means it.
    pub(in crate::image) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let begun = Instant::now();
        let next = timeout(self.stall, self.stream.next()).await;
        // Only the registry's own time: what our disk takes is not its fault.
        self.waited += begun.elapsed();
        let (registry, digest) = (&self.registry, &self.digest);
        match next {
            Ok(None) => Ok(None),
            // The client has a time limit of its own, of the same length.
            Ok(Some(Err(error))) if error.is_timeout() => Err(self.stalled()),
            Err(_) => Err(self.stalled()),
            Ok(Some(Err(error))) => Err(Failure::again(ApiError::unavailable(format!(
                "the download of {digest} from {registry} broke: {}",
                told(&error)
            )))),
            Ok(Some(Ok(chunk))) => {
                self.came += chunk.len() as u64;
                self.judge()?;
                Ok(Some(chunk))
            }
        }
    }

    fn stalled(&self) -> Failure {
        let (digest, registry, seconds) = (&self.digest, &self.registry, self.stall.as_secs());
        Failure::again(ApiError::unavailable(format!(
            "the download of {digest} from {registry} stalled for {seconds} s"
        )))
    }

    fn judge(&mut self) -> Result<(), Failure> {
        if self.waited < self.stall {
            return Ok(());
        }
        let rate = (self.came as f64 / self.waited.as_secs_f64()) as u64;
        (self.waited, self.came) = (Duration::ZERO, 0);
        if rate >= RATE_MIN {
            return Ok(());
        }
        Err(Failure::again(ApiError::unavailable(format!(
            "the download of {} from {} is too slow: {rate} bytes a second, {RATE_MIN} are the least",
            self.digest, self.registry
        ))))
    }
}

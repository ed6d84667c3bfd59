//! Downloads: blobs to files, in parallel, their digests and sizes checked while they stream.

use std::{path::Path, sync::Arc, time::Duration};

use backon::{ExponentialBuilder, Retryable};
use contract::ApiError;
use futures::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use tokio::{fs::File, io::AsyncWriteExt, time::timeout};

use super::{
    limits::Limits,
    manifest::Descriptor,
    progress::Reporter,
    source::{Source, broken, mismatch},
    storage_error,
};

/// How many blobs are downloaded at once.
const PARALLEL: usize = 4;
/// How often one blob is tried.
const TRIES: usize = 5;

/// Downloads every blob to `<dir>/<n>`.
pub(super) async fn all(
    source: &Arc<Source>,
    blobs: Vec<Descriptor>,
    dir: &Path,
    limits: &Limits,
    progress: &Reporter,
) -> Result<(), ApiError> {
    let total = blobs.iter().map(|blob| blob.size).sum();
    progress.phase("downloading", total);
    let each = blobs.into_iter().enumerate().map(|(n, blob)| {
        let (source, path, limits, progress) = (source.clone(), dir.join(n.to_string()), *limits, progress.clone());
        async move {
            let pauses =
                ExponentialBuilder::default().with_min_delay(Duration::from_millis(200)).with_max_times(TRIES - 1);
            (|| one(&source, &blob, &path, &limits, &progress))
                .retry(pauses)
                .when(|error: &ApiError| error.retryable)
                .await
        }
    });
    stream::iter(each).buffer_unordered(PARALLEL).try_collect().await
}

async fn one(
    source: &Source,
    blob: &Descriptor,
    path: &Path,
    limits: &Limits,
    progress: &Reporter,
) -> Result<(), ApiError> {
    let mut bytes = source.blob(blob).await?;
    let mut file = File::create(path).await.map_err(|error| storage_error(path, &error))?;
    let (mut hasher, mut length) = (Sha256::new(), 0u64);
    let outcome = loop {
        let next = timeout(limits.stall, bytes.next()).await;
        let silent = || {
            ApiError::unavailable(format!("the download of {} stalled for {} s", blob.digest, limits.stall.as_secs()))
        };
        let chunk = match next {
            Err(_) => break Err(silent()),
            Ok(None) => break Ok(()),
            Ok(Some(Err(error))) => break Err(broken(&blob.digest, &error)),
            Ok(Some(Ok(chunk))) => chunk,
        };
        length += chunk.len() as u64;
        if length > blob.size {
            break Err(mismatch("a layer (longer than its manifest says)", &blob.digest, "longer"));
        }
        hasher.update(&chunk);
        if let Err(error) = file.write_all(&chunk).await {
            break Err(storage_error(path, &error));
        }
        progress.add(chunk.len() as u64);
    };
    let outcome = match outcome {
        Ok(()) => file.flush().await.map_err(|error| storage_error(path, &error)),
        Err(error) => Err(error),
    };
    let digest = format!("sha256:{}", hex::encode(hasher.finalize()));
    let checked = outcome.and_then(|()| {
        if length < blob.size {
            return Err(ApiError::unavailable(format!(
                "the download of {} ended after {length} of {} bytes",
                blob.digest, blob.size
            )));
        }
        if digest != blob.digest { Err(mismatch("a layer", &blob.digest, &digest)) } else { Ok(()) }
    });
    if checked.is_err() {
        progress.take_back(length);
    }
    checked
}

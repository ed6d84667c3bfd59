//! The layers of one image **on their way**: read from the beginning while they still come, from the cache or from where a layout has them.

use std::{io::Read, sync::Arc, time::Duration};

use contract::{ApiError, operation::Progress};
use futures::{TryStreamExt, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;

use super::{
    cache::{Blob, Broken, Cache, Content, told},
    layout::Layout,
    manifest::Descriptor,
    source::Source,
};

/// How long the rest of a layer is waited for only to say better why it could not be unpacked.
const DAMAGE: Duration = Duration::from_secs(30);
/// Larger layers of a layout are not read over for that.
const READ_OVER_MAX: u64 = 1 << 30;

/// A layer's packed bytes; errors of the download are [`super::cache::told`] from the reader's.
pub(super) type Packed = Box<dyn Read + Send>;

/// Layers that come, for as long as this is held.
pub(super) struct Download {
    /// With each, whether somebody else had begun it; none of a layout's.
    blobs: Vec<(Arc<Blob>, bool)>,
    /// A layout's layers.
    local: Vec<(Arc<Layout>, Descriptor)>,
}

impl Download {
    /// Begins; a reader a layer in their order. The readers end early when `cancel` does.
    ///
    /// # Errors
    /// A layout lacks a layer.
    pub(super) fn begin(
        source: &Source,
        cache: &Arc<Cache>,
        layers: &[Descriptor],
        cancel: &CancellationToken,
    ) -> Result<(Self, Vec<Packed>), ApiError> {
        match source {
            Source::Registry(registry) => {
                let blobs = cache.pull(registry, layers);
                let readers = blobs.iter().map(|(blob, _)| Box::new(blob.reader(cancel.clone())) as Packed).collect();
                Ok((Self { blobs, local: Vec::new() }, readers))
            }
            Source::Layout { layout, .. } => {
                let readers = layers.iter().map(|layer| Ok(Box::new(layout.blob(layer)?) as Packed));
                let local = layers.iter().map(|layer| (layout.clone(), layer.clone())).collect();
                Ok((Self { blobs: Vec::new(), local }, readers.collect::<Result<_, ApiError>>()?))
            }
        }
    }

    /// Waits until every layer is here and proven.
    ///
    /// # Errors
    /// Why one does not come.
    pub(super) async fn whole(&self) -> Result<(), ApiError> {
        let coming = FuturesUnordered::new();
        for (blob, _) in &self.blobs {
            let content = blob.content().clone();
            coming.push(async move { content.whole().await });
        }
        coming.try_collect().await
    }

    /// Why a layer did not come, if one did not. One that was to come from somebody else's registry may come from our own.
    pub(super) fn broken(&self) -> Option<Broken> {
        self.blobs.iter().find_map(|(blob, joined)| {
            let broken = blob.content().broken()?;
            Some(Broken { anew: broken.anew || *joined, ..broken })
        })
    }

    /// Why a layer that could not be unpacked is not even what its digest says, if so. That is known when all of it was seen, which is waited
    /// for, but not for long.
    pub(super) async fn damage(&self) -> Option<Broken> {
        let proven = async {
            for (blob, _) in &self.blobs {
                blob.prove().await;
            }
            let local = self.local.clone();
            tokio::task::spawn_blocking(move || local.iter().find_map(|(layout, layer)| unproven(layout, layer))).await
        };
        let local = tokio::time::timeout(DAMAGE, proven).await.ok().and_then(Result::ok).flatten();
        self.broken().or(local.map(Broken::from))
    }

    /// What shows how far it is, without holding on to it.
    pub(super) fn transfer(&self) -> Transfer {
        Transfer(self.blobs.iter().map(|(blob, _)| blob.content().clone()).collect())
    }
}

fn unproven(layout: &Layout, layer: &Descriptor) -> Option<ApiError> {
    if layer.size > READ_OVER_MAX {
        return None;
    }
    let mut reader = layout.blob(layer).ok()?;
    std::io::copy(&mut reader, &mut std::io::sink()).err().and_then(|error| told(&error))
}

/// How far a download is.
#[derive(Clone, Default)]
pub(super) struct Transfer(Vec<Arc<Content>>);

impl Transfer {
    /// Bytes that are here, with those that were before; `None` when all are.
    pub(super) fn progress(&self) -> Option<Progress> {
        let done = self.0.iter().map(|content| content.written()).sum();
        let total = self.0.iter().map(|content| content.size()).sum();
        (done < total).then_some(Progress { done, total })
    }
}

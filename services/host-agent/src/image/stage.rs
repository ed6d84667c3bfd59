//! One **staging**, from a source to a whole, synced directory. What an image is made of decides who makes it: each maker is a
//! module of its own, leaves the root filesystem in the directory and says what it made.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use contract::{
    ApiError, OperationId,
    agent::{StageSource, StagedImage},
    image::ImageSource,
};
use tokio_util::sync::CancellationToken;

use super::{
    ImageOptions, ImageStore, MANIFEST, Record, cache::Cache, import, progress::Reporter, promote, pull, register,
    storage_error,
};
use crate::files;

/// How often it is looked whether the disk fills up: a fast disk takes some hundred MiB meanwhile, less than the reserve.
const LOOK: Duration = Duration::from_millis(250);

/// What one staging needs.
pub(super) struct Staging {
    pub operation: OperationId,
    pub dir: PathBuf,
    pub source: StageSource,
    pub images: Arc<ImageStore>,
    pub options: ImageOptions,
    pub cache: Arc<Cache>,
    pub progress: Reporter,
    pub cancel: CancellationToken,
}

impl Staging {
    /// Does it all. The directory holds `manifest.json` when it is whole, and only then.
    pub(super) async fn run(&self) -> Result<StagedImage, ApiError> {
        let image = match self.source.clone() {
            StageSource::Registry(reference) => pull::make(self, &ImageSource::Registry(reference)).await?,
            StageSource::Layout { path, reference } => {
                pull::make(self, &ImageSource::Layout { path, reference }).await?
            }
            StageSource::Vm { vm, ssh_keys, keep_identity } => {
                promote::make(self, promote::Order { vm, ssh_keys, keep_identity }).await?
            }
            StageSource::File { from, config } => register::make(self, &from, config).await?,
            StageSource::Archive { from } => import::make(self, &from).await?,
        };
        self.finish(image).await
    }

    /// Leaves work at once when the staging is discarded.
    ///
    /// # Errors
    /// The work's, or `cancelled`.
    pub(super) async fn unless_discarded<T>(
        &self,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        tokio::select! {
            done = work => done,
            () = self.cancel.cancelled() => Err(ApiError::cancelled("the staging was discarded")),
        }
    }

    /// Has a thread work in the directory, and stops it when the disk fills up meanwhile. It is not abandoned on a cancel, which it looks
    /// out for itself: nothing may write there once this has ended.
    ///
    /// # Errors
    /// The work's, that it panicked, or `resource_exhausted`.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path, &Reporter, &CancellationToken) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.blocking_until(&self.cancel.child_token(), work).await
    }

    /// [`Staging::blocking`] with the token that stops the work, a child of the staging's.
    ///
    /// # Errors
    /// As there.
    pub(super) async fn blocking_until<T: Send + 'static>(
        &self,
        stop: &CancellationToken,
        work: impl FnOnce(&Path, &Reporter, &CancellationToken) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let (dir, progress, told) = (self.dir.clone(), self.progress.clone(), stop.clone());
        let mut working = tokio::task::spawn_blocking(move || work(&dir, &progress, &told));
        let failed = |error| ApiError::internal(format!("the image's making failed: {error}"));
        tokio::select! {
            done = &mut working => done.map_err(failed)?,
            full = self.filling() => {
                stop.cancel();
                // What was done in the same moment is done.
                working.await.map_err(failed)?.map_err(|_| full)
            }
        }
    }

    /// Ends when the disk is fuller than images may make it.
    async fn filling(&self) -> ApiError {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(error) = self.cache.high_water().check().and_then(|()| self.room(0)) {
                return error;
            }
        }
    }

    /// Refuses what needs more bytes than the disk has beside its reserve.
    ///
    /// # Errors
    /// `resource_exhausted`.
    pub(super) fn room(&self, bytes: u64) -> Result<(), ApiError> {
        let free = files::free_bytes(&self.dir).map_err(|error| storage_error(&self.dir, &error))?;
        let needed = bytes.saturating_add(self.options.limits.reserve);
        if free < needed {
            return Err(ApiError::resource_exhausted(format!(
                "the host's disk has {} MiB free, of which {} MiB are to stay free, and the image needs {} MiB at the least",
                free >> 20,
                self.options.limits.reserve >> 20,
                bytes >> 20
            ))
            .hint("remove images with `warren image rm`, or give the host more disk"));
        }
        Ok(())
    }

    /// Writes the record that makes the directory whole.
    async fn finish(&self, image: StagedImage) -> Result<StagedImage, ApiError> {
        runtime::fault::point("agent/image.stage/written");
        let operation = self.operation;
        self.blocking(move |dir, _, _| {
            let record = serde_json::to_vec_pretty(&Record::new(operation, image.clone()))
                .map_err(|error| ApiError::internal(error.to_string()))?;
            let path = dir.join(MANIFEST);
            files::write_atomically(&path, &record, 0o644).map_err(|error| storage_error(&path, &error))?;
            Ok(image)
        })
        .await
    }
}

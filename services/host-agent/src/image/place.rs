//! The **place** of an image: its directory under `images/`. It comes there by one rename, goes by one rename, and may
//! change hands meanwhile; who does one of these holds [`ImageStore`]'s `places`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use contract::{
    ApiError, ImageId, OperationId,
    agent::{PublishRequest, ReclaimRequest, RemoveImageRequest, StagedImage},
};

use super::{ImageStore, MANIFEST, ROOTFS, Record, read_record, remove, storage_error};
use crate::files;

/// How directories are called that are about to be removed.
pub(super) const TRASH: &str = ".trash-";

impl ImageStore {
    /// Makes a staged image visible under its id; a repeat finds it there. Files of the same digest that stand there already
    /// stay, as VMs may build on them; what is not whole makes room.
    ///
    /// # Errors
    /// `failed_precondition` when nothing whole is staged, or another image stands there.
    pub async fn publish(&self, request: &PublishRequest) -> Result<StagedImage, ApiError> {
        let operation = request.fence.operation;
        let publication = Publication {
            operation,
            image: request.image,
            staged: self.staging(operation),
            place: self.published(request.image),
            trash: self.trash(request.image),
        };
        let places = self.places.clone();
        let published = tokio::task::spawn_blocking(move || publication.run(&places)).await;
        let record = published.map_err(|error| ApiError::internal(format!("the publication failed: {error}")))??;
        self.tasks().remove(&operation);
        remove(self.trash(request.image)).await?;
        Ok(record.image)
    }

    /// Removes a published image: first out of sight, then for good.
    ///
    /// # Errors
    /// The files cannot be removed.
    pub async fn remove(&self, request: &RemoveImageRequest) -> Result<(), ApiError> {
        self.take_away(request.image, |_| Ok(())).await
    }

    /// Removes the directory of an image that has no row, if it still is as it was listed.
    ///
    /// # Errors
    /// `failed_precondition` when it was published anew meanwhile or its record cannot be read, or the files cannot be removed.
    pub async fn reclaim(&self, request: &ReclaimRequest) -> Result<(), ApiError> {
        let listed = request.operations.clone();
        self.take_away(request.image, move |place| match read_record(place) {
            Some(record) if record.operations() == listed => Ok(()),
            Some(_) => Err(ApiError::failed_precondition("it was published anew since it was listed")),
            None => Err(ApiError::failed_precondition("its record cannot be read")),
        })
        .await
    }

    async fn take_away(
        &self,
        image: ImageId,
        may: impl FnOnce(&Path) -> Result<(), ApiError> + Send + 'static,
    ) -> Result<(), ApiError> {
        let (place, trash, places) = (self.published(image), self.trash(image), self.places.clone());
        let away = move || {
            // What an earlier attempt moved away comes first: the rename needs its name.
            files::remove_dir(&trash).map_err(|error| storage_error(&trash, &error))?;
            let _held = places.lock().unwrap_or_else(PoisonError::into_inner);
            if place.exists() {
                may(&place)?;
            }
            set_aside(&place, &trash)
        };
        let away = tokio::task::spawn_blocking(away).await;
        away.map_err(|error| ApiError::internal(format!("a removal failed: {error}")))??;
        remove(self.trash(image)).await
    }

    fn trash(&self, image: ImageId) -> PathBuf {
        self.root.join("staging").join(format!("{TRASH}{image}"))
    }
}

struct Publication {
    operation: OperationId,
    image: ImageId,
    staged: PathBuf,
    place: PathBuf,
    trash: PathBuf,
}

impl Publication {
    fn run(&self, places: &Mutex<()>) -> Result<Record, ApiError> {
        let _held = places.lock().unwrap_or_else(PoisonError::into_inner);
        let there = read_record(&self.place).filter(|record| damage(&self.place, record).is_none());
        if let Some(record) = there.as_ref().filter(|record| record.is_of(self.operation)) {
            return Ok(record.clone());
        }
        let Some(record) = read_record(&self.staged) else {
            return Err(ApiError::failed_precondition(format!("nothing is staged for {}", self.operation)));
        };
        match there {
            // Left whole by a publication that did not come to its end, or that has not yet.
            Some(there) if there.image.digest == record.image.digest => return self.share(there),
            Some(there) => {
                return Err(ApiError::failed_precondition(format!(
                    "another image stands at {}, of digest {}",
                    self.place.display(),
                    there.image.digest
                ))
                .hint("`warren image gc` tells whose it is"));
            }
            None => {}
        }
        runtime::fault::point("agent/image.publish/before");
        if self.place.exists() {
            tracing::warn!(image.id = %self.image, "what stood at the image's place was not whole");
            set_aside(&self.place, &self.trash)?;
        }
        let rename = || -> io::Result<()> {
            fs::rename(&self.staged, &self.place)?;
            runtime::fault::point("agent/image.publish/renamed");
            files::sync_parent(&self.place)?;
            files::sync_parent(&self.staged)
        };
        rename().map_err(|error| storage_error(&self.place, &error))?;
        Ok(record)
    }

    /// Takes down that this operation published what stands there too, and removes its own staging.
    fn share(&self, mut there: Record) -> Result<Record, ApiError> {
        there.also.push(self.operation);
        let text = serde_json::to_vec_pretty(&there).map_err(|error| ApiError::internal(error.to_string()))?;
        let path = self.place.join(MANIFEST);
        files::write_atomically(&path, &text, 0o644).map_err(|error| storage_error(&path, &error))?;
        files::remove_dir(&self.staged).map_err(|error| storage_error(&self.staged, &error))?;
        Ok(there)
    }
}

fn set_aside(place: &Path, trash: &Path) -> Result<(), ApiError> {
    match fs::rename(place, trash) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(storage_error(place, &error)),
        Ok(()) => files::sync_parent(place).map_err(|error| storage_error(place, &error)),
    }
}

/// What is wrong with an image's directory, its record read.
pub(super) fn damage(place: &Path, record: &Record) -> Option<String> {
    match fs::metadata(place.join(ROOTFS)) {
        Ok(file) if file.len() == record.image.rootfs_bytes => None,
        Ok(file) => {
            Some(format!("{ROOTFS} has {} bytes, where the record says {}", file.len(), record.image.rootfs_bytes))
        }
        Err(error) => Some(format!("{ROOTFS}: {error}")),
    }
}

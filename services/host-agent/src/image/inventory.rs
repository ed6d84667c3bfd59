//! The **inventory**: what stands in this host's directories of images, as image-service compares it with its rows. And the
//! sweep of what was about to be removed when an agent died.

use std::{fs, io, path::Path, time::Duration};

use contract::{
    ApiError, ImageId, OperationId,
    agent::{ImageHere, Inventory, InventoryRequest, STRAYS_MAX, StagingHere},
};

use super::{
    ImageStore,
    place::{TRASH, damage},
    read_record, storage_error,
};
use crate::{
    files,
    listing::{age, disk_bytes, names},
};

/// The images of one page: at some 300 bytes each, a reply is far below what NATS carries.
const PAGE: usize = 1000;

/// The stagings named at the most: many more than ever run at once.
const STAGINGS_MAX: usize = 1000;

impl ImageStore {
    /// Lists a page of what is here.
    ///
    /// # Errors
    /// The directories cannot be read.
    pub async fn inventory(&self, request: &InventoryRequest) -> Result<Inventory, ApiError> {
        let (root, after) = (self.root.clone(), request.after);
        let listed = tokio::task::spawn_blocking(move || list(&root, after)).await;
        let listed = listed.map_err(|error| ApiError::internal(format!("the inventory failed: {error}")))?;
        let mut inventory = listed.map_err(|error| storage_error(&self.root, &error))?;
        if request.after.is_none() {
            let usage = self.cache.usage().map_err(|error| storage_error(&self.root, &error))?;
            (inventory.cache_blobs, inventory.cache_bytes) = (usage.blobs, usage.bytes);
        }
        for staging in &mut inventory.stagings {
            (staging.working, staging.epoch) = self.activity(staging.operation);
        }
        Ok(inventory)
    }

    /// Whether an operation's staging is written to now, and the highest epoch seen of it.
    fn activity(&self, operation: OperationId) -> (bool, i64) {
        let staging = self.tasks().get(&operation).map(|task| (task.outcome.borrow().is_none(), task.epoch));
        let push = self.pushes.activity(operation);
        let discarded = self.discarded().get(&operation).copied().unwrap_or(0);
        let (working, epoch) = staging.or(push).unwrap_or_default();
        (working, epoch.max(discarded))
    }

    /// Removes what has been about to be removed for longer than that.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn sweep(&self, longer: Duration) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join("staging"))? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(TRASH.as_bytes())
                && fs::symlink_metadata(entry.path()).is_ok_and(|metadata| age(&metadata) >= longer)
            {
                files::remove_dir(&entry.path())?;
            }
        }
        Ok(())
    }
}

fn list(root: &Path, after: Option<ImageId>) -> io::Result<Inventory> {
    let mut inventory = Inventory::default();
    let mut ids = Vec::new();
    for (name, is_dir) in names(&root.join("images"))? {
        match name.parse::<ImageId>() {
            Ok(id) if is_dir => ids.push(id),
            _ => inventory.strays.push(format!("images/{name}")),
        }
    }
    ids.sort_unstable();
    ids.retain(|id| after.is_none_or(|after| *id > after));
    // A page is full, or the last one: what was removed since it was listed takes no place in it.
    let mut ids = ids.into_iter();
    inventory.images = ids.by_ref().filter_map(|id| image(root, id)).take(PAGE).collect();
    inventory.more = ids.next().is_some();
    if after.is_some() {
        inventory.strays.clear();
        return Ok(inventory);
    }
    for (name, is_dir) in names(&root.join("staging"))? {
        match name.parse::<OperationId>() {
            Ok(id) if is_dir => inventory.stagings.extend(staging(root, id)),
            _ if name.starts_with(TRASH) => {}
            _ => inventory.strays.push(format!("staging/{name}")),
        }
    }
    inventory.stagings.sort_unstable_by_key(|staging| staging.operation);
    inventory.stagings.truncate(STAGINGS_MAX);
    inventory.strays.sort_unstable();
    inventory.strays.truncate(STRAYS_MAX);
    Ok(inventory)
}

/// Nothing when it was removed meanwhile.
fn image(root: &Path, image: ImageId) -> Option<ImageHere> {
    let place = root.join("images").join(image.to_string());
    let metadata = fs::symlink_metadata(&place).ok()?;
    let record = read_record(&place);
    let damage = match &record {
        Some(record) => damage(&place, record),
        None => Some("its record cannot be read".to_owned()),
    };
    Some(ImageHere {
        image,
        digest: record.as_ref().map(|record| record.image.digest.clone()),
        damage,
        operations: record.map(|record| record.operations()).unwrap_or_default(),
        disk_bytes: disk_bytes(&place),
        age_s: age(&metadata).as_secs(),
    })
}

fn staging(root: &Path, operation: OperationId) -> Option<StagingHere> {
    let dir = root.join("staging").join(operation.to_string());
    let metadata = fs::symlink_metadata(&dir).ok()?;
    let age_s = age(&metadata).as_secs();
    Some(StagingHere { operation, working: false, epoch: 0, disk_bytes: disk_bytes(&dir), age_s })
}

//! The **inventory**: what stands in this host's directory of kernels, as image-service compares it with its rows, and before it trusts them.

use std::{fs, io, path::Path};

use contract::{
    ApiError, KernelId, OperationId,
    agent::{KernelHere, KernelInventoryRequest, KernelsHere, STRAYS_MAX, StagedKernel, StagingHere},
};

use super::{
    identity,
    objects::{IMAGE, KernelObjects, MODULES, STAGING, TRASH, off_the_runtime, read_record},
    staging::storage_error,
};
use crate::listing::{age, disk_bytes, names};

/// The kernels and the stagings named at the most, each: a lab has tens, and a reply of these is below what NATS carries.
const LISTED_MAX: usize = 1000;

impl KernelObjects {
    /// Lists what is here, or tells of one kernel.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub async fn inventory(&self, request: &KernelInventoryRequest) -> Result<KernelsHere, ApiError> {
        let (root, only) = (self.root.clone(), request.only);
        let mut listed = off_the_runtime(move || match only {
            Some(kernel) => {
                Ok(KernelsHere { kernels: here(&root, kernel).into_iter().collect(), ..Default::default() })
            }
            None => list(&root).map_err(|error| storage_error(&root, &error)),
        })
        .await?;
        for staging in &mut listed.stagings {
            (staging.working, staging.epoch) = self.tasks.activity(staging.operation);
        }
        Ok(listed)
    }
}

fn list(root: &Path) -> io::Result<KernelsHere> {
    let (mut all, mut ids) = (KernelsHere::default(), Vec::new());
    for (name, is_dir) in names(root)? {
        let staging = name.strip_prefix(STAGING).and_then(|id| id.parse::<OperationId>().ok());
        match (name.parse::<KernelId>(), staging) {
            (Ok(id), _) if is_dir => ids.push(id),
            (_, Some(operation)) if is_dir => all.stagings.extend(staged(&root.join(&name), operation)),
            _ if name.starts_with(TRASH) => {}
            _ => all.strays.push(format!("kernel-objects/{name}")),
        }
    }
    ids.sort_unstable();
    all.kernels = ids.into_iter().take(LISTED_MAX).filter_map(|id| here(root, id)).collect();
    all.stagings.sort_unstable_by_key(|staging| staging.operation);
    all.stagings.truncate(LISTED_MAX);
    all.strays.sort_unstable();
    all.strays.truncate(STRAYS_MAX);
    Ok(all)
}

/// Nothing where there is no directory.
fn here(root: &Path, kernel: KernelId) -> Option<KernelHere> {
    let place = root.join(kernel.to_string());
    let metadata = fs::symlink_metadata(&place).ok().filter(fs::Metadata::is_dir)?;
    let record = read_record(&place);
    let damage = match &record {
        Some(record) => damage(&place, &record.kernel),
        None => Some("its record cannot be read".to_owned()),
    };
    Some(KernelHere {
        kernel,
        digest: record.as_ref().map(|record| record.kernel.digest.clone()),
        damage,
        operation: record.map(|record| record.operation),
        disk_bytes: disk_bytes(&place),
        age_s: age(&metadata).as_secs(),
    })
}

fn staged(dir: &Path, operation: OperationId) -> Option<StagingHere> {
    let age_s = age(&fs::symlink_metadata(dir).ok()?).as_secs();
    Some(StagingHere { operation, working: false, epoch: 0, disk_bytes: disk_bytes(dir), age_s })
}

/// What is wrong with a kernel's files, as far as their lengths tell: each round hashing them all would be too much.
fn damage(place: &Path, kernel: &StagedKernel) -> Option<String> {
    match length(place) {
        Ok(bytes) if bytes == kernel.bytes => None,
        Ok(bytes) => Some(format!("its files have {bytes} bytes, and not {}", kernel.bytes)),
        Err(error) => Some(format!("its files cannot be read: {error}")),
    }
}

fn length(place: &Path) -> io::Result<u64> {
    let (mut bytes, modules) = (fs::metadata(place.join(IMAGE))?.len(), place.join(MODULES));
    if modules.is_dir() {
        for file in identity::files_below(&modules)? {
            bytes += fs::metadata(modules.join(file))?.len();
        }
    }
    Ok(bytes)
}

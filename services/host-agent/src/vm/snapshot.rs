//! A copy of a VM's root disk, for an image made of it. The owner takes it, so that nothing starts, grows or removes the VM meanwhile;
//! that wait is short, as the copy is made flat afterwards and elsewhere.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use contract::{ApiError, ErrorCode, VmId, VmName};

use super::{
    Command, Vms,
    owner::{Owner, internal},
};
use crate::{
    disk::Snapshot,
    files,
    handles::Handles,
    image::{Copied, Copying, Disks},
};

/// How long a guest's file systems may stay frozen; its own agent thaws them then, whatever becomes of this one.
const FROZEN_S: u32 = 40;
/// How long the copy may take meanwhile: the rest is for both sides to see its end.
const COPY: Duration = Duration::from_secs(30);

impl Owner {
    /// Copies the root disk. That of a VM that runs is copied while its guest has frozen its file systems.
    pub(super) async fn copy_disk(&self, copying: Copying) -> Result<Copied, ApiError> {
        let gone = || ApiError::not_found(format!("no VM {} on this host", self.vm));
        let Some(handles) = self.handles.clone() else { return Err(gone()) };
        let name = handles.spec.name.clone();
        let refuse = |what: &str| refused(&name, what);
        if !handles.provisioned {
            return Err(ApiError::failed_precondition(format!("the VM {name} is not made yet")));
        }
        let Some(running) = &self.running else { return self.copy_still(handles, copying, None).await };
        match &handles.vmm {
            Some(vmm) if vmm.paused => {
                return Err(refuse("is paused, with work in its memory that is not on its disk yet"));
            }
            Some(vmm) if vmm.guest.is_some() => {}
            _ => return Err(refuse("is not ready yet")),
        }
        let frozen = running.guest.freeze(FROZEN_S).await.map_err(|error| unfrozen(&name, error))?;
        runtime::fault::point("agent/vm.copy/frozen");
        let copied = self.copy_still(handles, copying, Some(Instant::now() + COPY)).await;
        let thawed = frozen.thaw().await;
        let copied = copied.map_err(|error| match error.code {
            ErrorCode::DeadlineExceeded => refuse(&error.message),
            _ => error,
        })?;
        thawed.map_err(|error| {
            refuse(&format!("was not frozen for as long as its disk was copied: {}", error.message))
        })?;
        Ok(copied)
    }

    /// Copies a disk that nobody writes to.
    async fn copy_still(&self, handles: Handles, copying: Copying, until: Option<Instant>) -> Result<Copied, ApiError> {
        let (deps, dir) = (self.deps.clone(), self.deps.dirs.dir(self.vm));
        let copied = tokio::task::spawn_blocking(move || {
            let overlay = handles.disk.format == "qcow2";
            let backing = overlay.then(|| deps.images.rootfs(handles.spec.image)).transpose()?;
            room(&dir.join(&handles.disk.file), backing.as_deref(), &copying)?;
            let late = || until.is_some_and(|until| Instant::now() > until);
            let go_on = |_| !copying.cancel.is_cancelled() && !late();
            let snapshot = Snapshot::take(&dir, &handles.disk, backing.as_deref(), &copying.into, &go_on);
            let snapshot = snapshot.map_err(|error| match error.kind() {
                io::ErrorKind::Interrupted if copying.cancel.is_cancelled() => {
                    ApiError::cancelled("the staging was discarded")
                }
                io::ErrorKind::Interrupted => {
                    ApiError::deadline_exceeded(format!("has more on its disk than is copied in {} s", COPY.as_secs()))
                }
                io::ErrorKind::StorageFull => ApiError::resource_exhausted("the host's disk is full"),
                _ => internal("the VM's disk cannot be copied", error),
            })?;
            runtime::fault::point("agent/vm.copy/taken");
            Ok(Copied { snapshot, spec: handles.spec })
        });
        copied.await.map_err(|error| internal("the copy of the disk failed", error))?
    }
}

/// That a VM cannot be copied now, but could be if it were stopped.
fn refused(name: &VmName, what: &str) -> ApiError {
    ApiError::failed_precondition(format!("the VM {name} {what}"))
        .hint(format!("stop it first: `warren vm stop {name}`"))
}

/// That its guest did not freeze.
fn unfrozen(name: &VmName, error: ApiError) -> ApiError {
    let why = error.message;
    let refused = refused(name, &format!("cannot be copied while it runs, its guest does not freeze its disk: {why}"));
    match (error.code, error.hint) {
        // An older guest's: a restart helps too, and says how.
        (ErrorCode::InvalidArgument, Some(hint)) => {
            refused.hint(format!("stop it first (`warren vm stop {name}`), or: {hint}"))
        }
        _ => refused,
    }
}

/// Refuses what cannot fit: the copy and, of an overlay, its flat form with what it has of the image.
fn room(disk: &Path, backing: Option<&Path>, copying: &Copying) -> Result<(), ApiError> {
    let allocated = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.blocks() * 512);
    let sizes = || -> io::Result<(u64, u64)> {
        let own = allocated(disk)?;
        let more = backing.map(|image| allocated(image).map(|image| image + own)).transpose()?;
        let parent = copying.into.parent().unwrap_or(Path::new("/"));
        Ok((own + more.unwrap_or_default() + copying.reserve, files::free_bytes(parent)?))
    };
    let (needed, free) = sizes().map_err(|error| internal("the VM's disk cannot be looked at", error))?;
    if free < needed {
        return Err(ApiError::resource_exhausted(format!(
            "the host's disk has {} MiB free and the copy of the VM's disk needs about {} MiB",
            free >> 20,
            needed >> 20
        ))
        .hint("remove images with `warren image rm`, or give the host more disk"));
    }
    Ok(())
}

#[async_trait]
impl Disks for Vms {
    async fn copy(&self, vm: VmId, copying: Copying) -> Result<Copied, ApiError> {
        // A copy makes no VM known.
        self.known(vm).ok_or_else(|| ApiError::not_found(format!("no VM {vm} on this host")))?;
        Ok(self.send(vm, |answer| Command::Copy(copying.clone(), answer)).await?.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_guest_that_knows_no_freeze_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let guest = crate::guest::older::guest(dir.path());
        let error = unfrozen(&"web".parse().unwrap(), guest.freeze(FROZEN_S).await.unwrap_err());
        assert_eq!(error.code, ErrorCode::FailedPrecondition, "{error:?}");
        assert!(error.message.contains("the VM web cannot be copied while it runs"), "{error:?}");
        assert!(error.message.contains("does not understand the request"), "{error:?}");
        let hint = error.hint.unwrap();
        assert!(hint.contains("`warren vm stop web`") && hint.contains("`warren vm restart`"), "{hint}");
    }
}

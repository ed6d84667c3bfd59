//! **Kernels** in a round: rows and hosts compared as of images, and those that came along with an image and that nothing uses any more. What an
//! operator imported stays until an operator removes it.

use std::collections::HashSet;

use contract::{
    ApiError, ErrorCode, HostId, KernelId, OperationId,
    agent::{
        DiscardRequest, Fence, KernelDiscard, KernelInventory, KernelInventoryRequest, KernelRemove,
        RemoveKernelRequest,
    },
    deadline,
    image::{GcItem, GcKind, GcOutcome},
};
use operations::{Kind, NewOperation};
use serde_json::json;

use super::round::{COLLECT_MS, Part, Round, item};
use crate::{
    db::{
        kernel::{
            removal::{removal_all, removal_done},
            replica::{kernel_keep_alone, kernel_replica_forget, kernel_replica_list, kernel_replica_note},
            unused::{Unused, kernel_unused_list, kernel_unused_note},
        },
        maker::{Maker, clock, maker_list},
        replica::Replica,
    },
    domain::comparison::{Listing, Mend, Object, Rows, compare},
    kinds::{KernelCollect, KernelCollectOrder, kernel_resource},
};

impl Round<'_> {
    /// Compares a host's kernels; an agent that is too old to list them is passed over.
    pub(super) async fn kernels_of(&self, host: &HostId, part: &mut Part) -> Result<(), ApiError> {
        let client = self.reconciler.store.client().await?;
        let (before, listed_at) = (of_host(kernel_replica_list(&client).await?, host), clock(&client).await?);
        drop(client);
        let request = KernelInventoryRequest { only: None };
        let here = match self.reconciler.bus.command::<KernelInventory>(host, &request).await {
            Ok(here) => Listing::from(here),
            Err(error) if error.code == ErrorCode::Unavailable => {
                tracing::debug!(host.id = %host, %error, "a host does not list its kernels");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let client = self.reconciler.store.client().await?;
        let after = of_host(kernel_replica_list(&client).await?, host);
        let owed = removal_all(&client).await?.into_iter().filter(|(removal, _)| removal.host == *host);
        let owed: HashSet<KernelId> = owed.map(|(removal, _)| removal.kernel).collect();
        let makers = maker_list(&client, &here.operations()).await?;
        drop(client);
        if let Some(host) = &mut part.host {
            host.kernels = here.all.len() as u64;
            host.kernel_bytes = here.all.iter().map(|here| here.disk_bytes).sum::<u64>()
                + here.stagings.iter().map(|here| here.disk_bytes).sum::<u64>();
        }
        let grace = self.reconciler.settings.grace;
        let rows = Rows { before: &before, after: &after, owed: &owed, makers: &makers, listed_at, grace };
        for found in compare(&here, &rows) {
            let mend = found.mend.clone();
            part.items.push(self.mended(host, found, self.mend_kernel(host, &mend)).await);
        }
        Ok(())
    }

    async fn mend_kernel(&self, host: &HostId, mend: &Mend<KernelId>) -> Result<(), ApiError> {
        match mend {
            Mend::Discard(fence) => {
                self.reconciler.bus.command::<KernelDiscard>(host, &DiscardRequest { fence: *fence }).await.map(drop)
            }
            Mend::Reclaim(kernel, operations) => self.reclaim_kernel(host, *kernel, operations).await,
            Mend::Note(replica, missing) => {
                let mut client = self.reconciler.store.client().await?;
                match kernel_replica_note(&mut client, replica, *missing).await? {
                    true => Ok(()),
                    false => Err(ApiError::aborted("it was brought back or deleted meanwhile")),
                }
            }
            Mend::Nothing => Ok(()),
        }
    }

    /// Removes a directory while nobody can be publishing the kernel there: who does holds its row, and one without a row is brought by nobody
    /// but the operation that made it, which has ended.
    async fn reclaim_kernel(
        &self,
        host: &HostId,
        kernel: KernelId,
        operations: &[OperationId],
    ) -> Result<(), ApiError> {
        let mut client = self.reconciler.store.client().await?;
        let makers = maker_list(&client, operations).await?;
        let fence = makers.iter().find_map(|(operation, maker)| match maker {
            Maker::Ended { epoch, .. } => Some(Fence { operation: *operation, epoch: *epoch }),
            Maker::Open => None,
        });
        let fence = fence.ok_or_else(|| ApiError::aborted("who made it is not known any more"))?;
        let placing = kernel_keep_alone(&mut client, kernel, fence).await?;
        if let Some(placing) = &placing
            && placing.there(host).await?
        {
            return Err(ApiError::aborted("it was published anew since it was listed"));
        }
        self.reconciler.bus.command::<KernelRemove>(host, &RemoveKernelRequest { fence, kernel }).await.map(drop)
    }

    /// Rows of hosts that the lab does not have any more.
    pub(super) async fn kernels_gone(&self, known: &HashSet<HostId>) -> Result<Part, ApiError> {
        let client = self.reconciler.store.client().await?;
        let (now, mut part) = (clock(&client).await?, Part::default());
        let replicas = kernel_replica_list(&client).await?;
        for replica in replicas.iter().filter(|replica| !known.contains(&replica.host)) {
            if now - replica.created_at < self.reconciler.settings.grace {
                continue;
            }
            let outcome = if self.dry_run {
                GcOutcome::Pending
            } else {
                kernel_replica_forget(&client, replica).await?;
                GcOutcome::Mended
            };
            part.items.push(item(GcKind::HostGone, Some(&replica.host), replica.id.row(), outcome, None));
        }
        Ok(part)
    }

    /// Kernels that came along with an image, that nobody gave a name, and that nothing uses any more.
    pub(super) async fn kernels_unused(&self) -> Result<Part, ApiError> {
        let mut part = Part::default();
        let client = self.reconciler.store.client().await?;
        if !self.dry_run {
            kernel_unused_note(&client).await?;
        }
        let Some(age) = self.reconciler.settings.age else { return Ok(part) };
        let kernels = kernel_unused_list(&client, age).await?;
        drop(client);
        for unused in &kernels {
            let (outcome, why) = self.collect_kernel(unused).await;
            let mut found = item(GcKind::Unnamed, None, unused.kernel.row(), outcome, why);
            found.disk_bytes = unused.bytes;
            part.items.push(found);
        }
        Ok(part)
    }

    async fn collect_kernel(&self, unused: &Unused) -> (GcOutcome, Option<String>) {
        if self.dry_run {
            return (GcOutcome::Pending, None);
        }
        let new = NewOperation {
            id: OperationId::new(),
            kind: KernelCollect::NAME,
            resource: kernel_resource(unused.kernel),
            deadline: deadline::LIFECYCLE,
            request: json!(KernelCollectOrder { kernel_id: unused.kernel }),
            request_key: None,
            request_digest: String::new(),
            traceparent: runtime::telemetry::current_traceparent(),
        };
        let submitter = &self.reconciler.submitter;
        let ended = async {
            let operation = submitter.submit(&new).await?;
            runtime::fault::point("image.gc/kernel/submitted");
            operations::answer(submitter, operation, true, COLLECT_MS).await
        };
        match ended.await {
            Ok(operation) if operation.result.as_ref().is_some_and(|result| result["deleted"] == true) => {
                (GcOutcome::Mended, None)
            }
            Ok(_) => (GcOutcome::Left, Some("it was named or used meanwhile".to_owned())),
            Err(error) => (GcOutcome::Left, Some(error.message)),
        }
    }

    /// What hosts owe of kernels; of a host that the lab does not have any more nothing is to be had.
    pub(super) async fn kernels_owed(&self, known: &HashSet<HostId>) -> Result<Part, ApiError> {
        let client = self.reconciler.store.client().await?;
        let mut part = Part::default();
        for (removal, reason) in removal_all(&client).await? {
            let found = |outcome, why: String| -> GcItem {
                item(GcKind::Owed, Some(&removal.host), removal.kernel.directory(), outcome, Some(why))
            };
            part.items.push(if known.contains(&removal.host) {
                found(GcOutcome::Left, reason.unwrap_or_else(|| "it is removed as soon as the host answers".to_owned()))
            } else {
                let tried = if self.dry_run { None } else { Some(Ok(removal_done(&client, &removal).await?)) };
                let why = Some("the lab does not have the host any more".to_owned());
                let (outcome, why) = self.outcome(tried, why);
                found(outcome, why.unwrap_or_default())
            });
        }
        Ok(part)
    }
}

fn of_host(replicas: Vec<Replica<KernelId>>, host: &HostId) -> Vec<Replica<KernelId>> {
    replicas.into_iter().filter(|replica| replica.host == *host).collect()
}

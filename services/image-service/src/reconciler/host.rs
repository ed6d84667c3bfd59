//! One **host** in a round: rows read, directories listed, rows read again, the difference mended.

use std::collections::HashSet;

use contract::{
    ApiError, ErrorCode, HostId, ImageId,
    agent::{DiscardRequest, ImageDiscard, ImageInventory, ImageReclaim, Inventory, InventoryRequest, ReclaimRequest},
    image::{GcHost, GcItem, GcOutcome},
};
use store::StoreError;
use time::OffsetDateTime;

use super::round::{Part, Round, skipped};
use crate::{
    db::{
        maker::{clock, maker_list},
        removal::removal_all,
        replica::{Replica, replica_list, replica_note},
    },
    domain::comparison::{Found, Listing, Mend, Object, Rows, compare},
};

impl Round<'_> {
    /// Looks at one host. One that does not answer, or is too old to know the question, is skipped and named.
    pub(super) async fn host(&self, host: &HostId) -> Part {
        match self.compared(host).await {
            Ok(part) => part,
            Err(error) if error.code == ErrorCode::Unavailable => {
                skipped(host, &format!("its agent does not list its images ({})", error.message))
            }
            Err(error) => skipped(host, &error.message),
        }
    }

    async fn compared(&self, host: &HostId) -> Result<Part, ApiError> {
        let (before, listed_at) = self.before(host).await?;
        let inventory = self.inventory(host).await?;
        let client = self.reconciler.store.client().await?;
        let after = of_host(replica_list(&client).await?, host);
        let owed: HashSet<ImageId> = removal_all(&client)
            .await?
            .into_iter()
            .filter(|(removal, _)| removal.host == *host)
            .map(|(removal, _)| removal.image)
            .collect();
        let measured = measured(host, &inventory);
        let listing = Listing::from(inventory);
        let makers = maker_list(&client, &listing.operations()).await?;
        drop(client);
        let grace = self.reconciler.settings.grace;
        let rows = Rows { before: &before, after: &after, owed: &owed, makers: &makers, listed_at, grace };
        let mut part = Part { items: Vec::new(), host: Some(measured) };
        for found in compare(&listing, &rows) {
            let mend = found.mend.clone();
            part.items.push(self.mended(host, found, self.mend(host, &mend)).await);
        }
        self.kernels_of(host, &mut part).await?;
        Ok(part)
    }

    async fn before(&self, host: &HostId) -> Result<(Vec<Replica>, OffsetDateTime), StoreError> {
        let client = self.reconciler.store.client().await?;
        let replicas = of_host(replica_list(&client).await?, host);
        Ok((replicas, clock(&client).await?))
    }

    /// All pages of what the host has.
    async fn inventory(&self, host: &HostId) -> Result<Inventory, ApiError> {
        let mut all = Inventory::default();
        loop {
            let request = InventoryRequest { after: all.images.last().map(|here| here.image) };
            let page = self.reconciler.bus.command::<ImageInventory>(host, &request).await?;
            let empty = page.images.is_empty();
            all.images.extend(page.images);
            all.stagings.extend(page.stagings);
            all.strays.extend(page.strays);
            all.cache_blobs += page.cache_blobs;
            all.cache_bytes += page.cache_bytes;
            if !page.more {
                return Ok(all);
            }
            if empty {
                // Where to go on nobody knows, and what was not listed is not missing.
                return Err(ApiError::unavailable("its listing breaks off"));
            }
        }
    }

    /// Tells of one thing, after it was mended if it is to be.
    pub(super) async fn mended<I: Object>(
        &self,
        host: &HostId,
        found: Found<I>,
        mending: impl Future<Output = Result<(), ApiError>>,
    ) -> GcItem {
        let Found { kind, what, disk_bytes, mend, why } = found;
        let (outcome, why) = if mend == Mend::Nothing {
            (GcOutcome::Left, why)
        } else {
            let tried = if self.dry_run { None } else { Some(mending.await) };
            runtime::fault::point(&format!("image.gc/{}/mended", kind.as_str()));
            self.outcome(tried, why)
        };
        GcItem { kind, host: Some(host.clone()), what, disk_bytes, outcome, why }
    }

    async fn mend(&self, host: &HostId, mend: &Mend) -> Result<(), ApiError> {
        let bus = &self.reconciler.bus;
        match mend {
            Mend::Discard(fence) => {
                bus.command::<ImageDiscard>(host, &DiscardRequest { fence: *fence }).await.map(drop)
            }
            Mend::Reclaim(image, operations) => {
                let request = ReclaimRequest { image: *image, operations: operations.clone() };
                bus.command::<ImageReclaim>(host, &request).await.map(drop)
            }
            Mend::Note(replica, missing) => {
                let mut client = self.reconciler.store.client().await?;
                match replica_note(&mut client, replica, *missing).await? {
                    true => Ok(()),
                    false => Err(ApiError::aborted("it was published, brought back or deleted meanwhile")),
                }
            }
            Mend::Nothing => Ok(()),
        }
    }
}

fn of_host(replicas: Vec<Replica>, host: &HostId) -> Vec<Replica> {
    replicas.into_iter().filter(|replica| replica.host == *host).collect()
}

fn measured(host: &HostId, inventory: &Inventory) -> GcHost {
    GcHost {
        host: host.clone(),
        skipped: None,
        images: inventory.images.len() as u64,
        image_bytes: inventory.images.iter().map(|here| here.disk_bytes).sum(),
        stagings: inventory.stagings.len() as u64,
        staging_bytes: inventory.stagings.iter().map(|here| here.disk_bytes).sum(),
        cache_bytes: inventory.cache_bytes,
        kernels: 0,
        kernel_bytes: 0,
    }
}

//! A **round**: every host looked at side by side, then what concerns the lab as a whole.

use std::{collections::HashSet, time::Duration};

use contract::{
    ApiError, HostId, OperationId, deadline,
    host::{self, Empty, HostState},
    image::{GC_ITEMS_MAX, GcCount, GcHost, GcItem, GcKind, GcOutcome, GcReport},
};
use futures::future::join_all;
use operations::{Kind, NewOperation};
use serde_json::json;

use super::Reconciler;
use crate::{
    db::{
        removal::{removal_all, removal_done},
        replica::{Replica, replica_forget, replica_list},
        unnamed::{Unnamed, unnamed_list, unnamed_note},
    },
    kinds::{Collect, CollectOrder, resource},
};

/// When what is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How often rows and hosts are compared; never by itself when there is none.
    pub every: Option<Duration>,
    /// How long an image without a name stays, and a kernel that came along with one and that nothing uses any more; for ever when there is none.
    pub age: Option<Duration>,
    /// How old a staging of an operation must be that the lab does not know, and a row of a host that it does not know.
    pub grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            every: Some(Duration::from_secs(300)),
            age: Some(Duration::from_secs(24 * 3600)),
            // A database that is brought back from a backup knows nothing of what began since.
            grace: Duration::from_secs(6 * 3600),
        }
    }
}

/// How long one removal of an image is waited for: as long as it waits for its hosts, and then some.
pub(super) const COLLECT_MS: u64 = 30_000;

/// One round.
pub(super) struct Round<'a> {
    pub reconciler: &'a Reconciler,
    pub dry_run: bool,
}

/// What one part of a round found.
#[derive(Default)]
pub(super) struct Part {
    pub items: Vec<GcItem>,
    pub host: Option<GcHost>,
}

impl<'a> Round<'a> {
    pub fn new(reconciler: &'a Reconciler, dry_run: bool) -> Self {
        Self { reconciler, dry_run }
    }

    /// Does it all.
    pub async fn run(&self) -> Result<GcReport, ApiError> {
        let hosts = self.reconciler.bus.call::<host::List>(&Empty {}).await?.hosts;
        let mut parts = join_all(hosts.iter().map(|host| async {
            match host.state {
                HostState::Up => self.host(&host.id).await,
                HostState::Down => skipped(&host.id, "it is down"),
            }
        }))
        .await;
        let known: HashSet<HostId> = hosts.into_iter().map(|host| host.id).collect();
        parts.push(self.gone(&known).await?);
        parts.push(self.unnamed().await?);
        parts.push(self.owed(&known).await?);
        parts.push(self.kernels_gone(&known).await?);
        parts.push(self.kernels_unused().await?);
        parts.push(self.kernels_owed(&known).await?);
        Ok(self.report(parts))
    }

    fn report(&self, parts: Vec<Part>) -> GcReport {
        let (mut items, mut hosts) = (Vec::new(), Vec::new());
        for part in parts {
            items.extend(part.items);
            hosts.extend(part.host);
        }
        let count = |kind| {
            let of_kind = items.iter().filter(|item: &&GcItem| item.kind == kind);
            let mended = of_kind.clone().filter(|item| item.outcome == GcOutcome::Mended).count() as u64;
            GcCount { kind, found: of_kind.count() as u64, mended }
        };
        let counts = GcKind::ALL.into_iter().map(count).filter(|count| count.found > 0).collect();
        let left_off = items.len().saturating_sub(GC_ITEMS_MAX) as u64;
        items.truncate(GC_ITEMS_MAX);
        GcReport { dry_run: self.dry_run, counts, items, left_off, hosts }
    }

    /// What became of something that can be mended: how its mending ended, if it was tried.
    pub fn outcome(&self, tried: Option<Result<(), ApiError>>, why: Option<String>) -> (GcOutcome, Option<String>) {
        match tried {
            None if self.dry_run => (GcOutcome::Pending, why),
            None => (GcOutcome::Left, why),
            Some(Ok(())) => (GcOutcome::Mended, why),
            Some(Err(error)) => (GcOutcome::Left, Some(error.message)),
        }
    }

    /// Rows of hosts that the lab does not have any more.
    async fn gone(&self, known: &HashSet<HostId>) -> Result<Part, ApiError> {
        let mut client = self.reconciler.store.client().await?;
        let now = crate::db::maker::clock(&client).await?;
        let mut part = Part::default();
        let replicas = replica_list(&client).await?;
        for replica in replicas.iter().filter(|replica| !known.contains(&replica.host)) {
            if now - replica.created_at < self.reconciler.settings.grace {
                continue;
            }
            let (outcome, why) = if replica.vms > 0 {
                (GcOutcome::Left, Some(format!("{} VMs have their disks there", replica.vms)))
            } else if self.dry_run {
                (GcOutcome::Pending, None)
            } else {
                runtime::fault::point("image.gc/host_gone/before");
                match replica_forget(&mut client, replica).await? {
                    true => (GcOutcome::Mended, None),
                    false => (GcOutcome::Left, Some("a VM has its disk there".to_owned())),
                }
            };
            part.items.push(item(GcKind::HostGone, Some(&replica.host), replica_shown(replica), outcome, why));
        }
        Ok(part)
    }

    /// Images without a name.
    async fn unnamed(&self) -> Result<Part, ApiError> {
        let mut part = Part::default();
        let client = self.reconciler.store.client().await?;
        if !self.dry_run {
            unnamed_note(&client).await?;
        }
        let Some(age) = self.reconciler.settings.age else { return Ok(part) };
        let (images, more) = unnamed_list(&client, age).await?;
        drop(client);
        let ends = join_all(images.iter().map(|unnamed| self.collect(unnamed))).await;
        for (unnamed, (outcome, why)) in images.iter().zip(ends) {
            let mut found = item(GcKind::Unnamed, None, unnamed.image.to_string(), outcome, why);
            found.disk_bytes = unnamed.rootfs_bytes;
            part.items.push(found);
        }
        if more > 0 {
            tracing::info!(more, "more images without a name have their turn in the next round");
        }
        Ok(part)
    }

    async fn collect(&self, unnamed: &Unnamed) -> (GcOutcome, Option<String>) {
        if self.dry_run {
            return (GcOutcome::Pending, None);
        }
        let order = CollectOrder { image_id: unnamed.image };
        let new = NewOperation {
            id: OperationId::new(),
            kind: Collect::NAME,
            resource: resource(unnamed.image),
            deadline: deadline::LIFECYCLE,
            request: json!(order),
            request_key: None,
            request_digest: String::new(),
            traceparent: runtime::telemetry::current_traceparent(),
        };
        let submitter = &self.reconciler.submitter;
        let ended = async {
            let operation = submitter.submit(&new).await?;
            runtime::fault::point("image.gc/unnamed/submitted");
            operations::answer(submitter, operation, true, COLLECT_MS).await
        };
        match ended.await {
            Ok(operation) if operation.result.as_ref().is_some_and(|result| result["deleted"] == true) => {
                (GcOutcome::Mended, None)
            }
            Ok(_) => (GcOutcome::Left, Some("it was named, or used by a VM, meanwhile".to_owned())),
            Err(error) => (GcOutcome::Left, Some(error.message)),
        }
    }

    /// What hosts owe. The sweeper sees to it; of a host that the lab does not have any more nothing is to be had.
    async fn owed(&self, known: &HashSet<HostId>) -> Result<Part, ApiError> {
        let client = self.reconciler.store.client().await?;
        let mut part = Part::default();
        for (removal, reason) in removal_all(&client).await? {
            let gone = !known.contains(&removal.host);
            let tried = if gone && !self.dry_run { Some(Ok(removal_done(&client, &removal).await?)) } else { None };
            let why = reason.filter(|_| !gone).unwrap_or_else(|| match gone {
                true => "the lab does not have the host any more".to_owned(),
                false => "it is removed as soon as the host answers".to_owned(),
            });
            let (outcome, why) = if gone { self.outcome(tried, Some(why)) } else { (GcOutcome::Left, Some(why)) };
            let image = format!("images/{}", removal.image);
            part.items.push(item(GcKind::Owed, Some(&removal.host), image, outcome, why));
        }
        Ok(part)
    }
}

fn replica_shown(replica: &Replica) -> String {
    replica.id.to_string()
}

/// A host that was not looked at.
pub(super) fn skipped(host: &HostId, why: &str) -> Part {
    let host = GcHost {
        host: host.clone(),
        skipped: Some(why.to_owned()),
        images: 0,
        image_bytes: 0,
        stagings: 0,
        staging_bytes: 0,
        cache_bytes: 0,
        kernels: 0,
        kernel_bytes: 0,
    };
    Part { items: Vec::new(), host: Some(host) }
}

pub(super) fn item(
    kind: GcKind,
    host: Option<&HostId>,
    what: String,
    outcome: GcOutcome,
    why: Option<String>,
) -> GcItem {
    GcItem { kind, host: host.cloned(), what, disk_bytes: 0, outcome, why }
}

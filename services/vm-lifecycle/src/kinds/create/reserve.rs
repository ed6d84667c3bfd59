//! The **reservation** of a create: name, room and address on the host that suits it best.

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;
use contract::{ApiError, HostId, ImageId, MebiBytes, agent::Fence, vm::CreateRequest};
use ipnet::Ipv4Net;
use operations::{Context, Step, StepError};

use super::{Create, CreateOrder, Journal, Place};
use crate::{
    db::{
        disk::{disk_host, disk_sizes},
        host::{host_candidates, host_share},
        reservation::{Claim, ReserveError, Settings},
    },
    domain::placement::{Needs, Question, place},
    kinds::rows,
};

/// Takes name, room and address, and makes the row.
pub(super) struct Reserve;

#[async_trait]
impl Step<Create> for Reserve {
    fn name(&self) -> &'static str {
        "reserve"
    }

    async fn run(
        &self,
        cx: &Context,
        kind: &Create,
        order: &CreateOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let image = journal.image()?.clone();
        // Hosts that were filled between the look and the reservation; each is left out only once, so the loop ends.
        let mut filled = BTreeSet::new();
        loop {
            cx.checkpoint()?;
            // Reserved already, by an earlier attempt or with its lab: what is held is not looked for again.
            let host = match rows::host(cx, order.vm_id).await? {
                Some(host) => host,
                None => choose(cx, kind, order, journal, &filled).await?,
            };
            let claim = claim(order, (image.id, &image.name), host, Some(cx.fence()));
            match kind.0.reservations.reserve(&claim).await {
                Ok(reserved) => {
                    let client = cx.store().client().await?;
                    let share = host_share(&client, &reserved.host).await?;
                    let address = Ipv4Net::new(reserved.address, share.subnet.prefix_len())
                        .map_err(|error| StepError::permanent(ApiError::internal(error.to_string())))?;
                    journal.place = Some(Place { host: reserved.host, address, gateway: share.gateway });
                    return Ok(());
                }
                Err(ReserveError::NoRoom { .. } | ReserveError::NoAddress(_)) => {
                    filled.insert(claim.host);
                }
                Err(error) => return Err(ApiError::from(error).into()),
            }
        }
    }

    /// Gives it all back in one statement.
    async fn undo(&self, cx: &Context, kind: &Create, order: &CreateOrder, _: &Journal) -> Result<(), StepError> {
        Ok(kind.0.reservations.release(order.vm_id, cx.epoch()).await.map_err(ApiError::from)?)
    }
}

async fn choose(
    cx: &Context,
    kind: &Create,
    order: &CreateOrder,
    journal: &Journal,
    filled: &BTreeSet<HostId>,
) -> Result<HostId, StepError> {
    let (create, image) = (&order.create, journal.image()?);
    let client = cx.store().client().await?;
    let hosts = host_candidates(&client, kind.0.reservations.rest()).await?;
    drop(client);
    let kept = kept_on(cx, create).await?;
    let needs = needs(cx, create).await?;
    let wanted = create.host.as_ref().or(kept.as_ref());
    // One of the lab's comes to whichever host it is.
    let kernel = create.features.kernel.as_ref().filter(|_| journal.kernel.is_none());
    let question = Question { needs, image: &image.name, holders: &image.hosts, kernel, wanted, filled };
    // A host that is down may be back in a moment, but a caller is better told now than after the deadline.
    place(&hosts, &question).cloned().map_err(StepError::permanent)
}

/// What a VM takes of its host: of a kept disk that is there already only what it grows by.
pub(in crate::kinds) async fn needs(cx: &Context, create: &CreateRequest) -> Result<Needs, StepError> {
    let kept: Vec<&str> =
        create.features.disks.iter().filter(|disk| disk.keep).map(|disk| disk.name.as_str()).collect();
    let there = match kept.is_empty() {
        true => HashMap::new(),
        false => disk_sizes(&cx.store().client().await?, &kept).await?,
    };
    let more = create.features.disks.iter().map(|disk| {
        let has = there.get(disk.name.as_str()).filter(|_| disk.keep).copied().unwrap_or_default();
        disk.size.0.saturating_sub(has)
    });
    let disk = MebiBytes(more.fold(create.disk.0, u32::saturating_add));
    Ok(Needs { cpus: create.cpus, memory: create.memory, disk })
}

/// The host of a kept disk that is there already: the VM has to go to it. The reservation refuses what does not fit together.
pub(in crate::kinds) async fn kept_on(cx: &Context, create: &CreateRequest) -> Result<Option<HostId>, StepError> {
    let kept: Vec<&str> =
        create.features.disks.iter().filter(|disk| disk.keep).map(|disk| disk.name.as_str()).collect();
    if kept.is_empty() {
        return Ok(None);
    }
    let client = cx.store().client().await?;
    Ok(disk_host(&client, &kept).await?)
}

/// What a create reserves of its host.
pub(in crate::kinds) fn claim(
    order: &CreateOrder,
    (image, image_name): (ImageId, &str),
    host: HostId,
    fence: Option<Fence>,
) -> Claim {
    let create = &order.create;
    Claim {
        id: order.vm_id,
        name: create.name.clone(),
        host,
        image,
        image_name: image_name.to_owned(),
        cpus: create.cpus,
        memory: create.memory,
        disk: create.disk,
        ssh_keys: create.ssh_keys.clone(),
        settings: Settings {
            labels: create.labels.clone(),
            deletion_protection: create.deletion_protection,
            restart: create.restart,
            ttl_seconds: create.ttl_seconds,
            idle_seconds: create.idle_seconds,
            idle_action: create.idle_seconds.map(|_| create.idle_action.unwrap_or_default()),
            ..Settings::default()
        }
        .with(create.features.clone()),
        fence,
    }
}

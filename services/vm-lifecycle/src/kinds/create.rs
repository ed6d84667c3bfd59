//! `vm.create`: resolve image and kernel, reserve, bring the kernel there, provision, boot, wait for the guest, say so.
//!
//! Nothing another create could want is held before `reserve`; everything slow comes after it, under the VM claim.

use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use contract::{
    ApiError, HostId, ImageId, MebiBytes, OperationId, VmId,
    agent::{Fence, VmKernel, VmSpec},
    deadline,
    feature::Features,
    image::ImageConfig,
    operation::VmResult,
    vm::CreateRequest,
};
use ipnet::Ipv4Net;
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Lab,
    agent::{self, Target},
    image::{self, Search},
    kernel, rows,
};
use crate::{
    db::{
        disk::{disk_host, disk_sizes},
        host::{host_candidates, host_share},
        reservation::{Claim, ReserveError, Settings},
        vm::{Patch, vm_find},
    },
    domain::{
        mac,
        placement::{Needs, Question, place},
        reference::{self, Wanted},
        state::Event,
    },
};

/// Creates and starts a VM.
pub struct Create(pub Arc<Lab>);

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateOrder {
    /// The VM's id, minted with the operation.
    pub vm_id: VmId,
    /// What was asked.
    pub create: CreateRequest,
}

/// How long a create may take in all: a missing image is pulled first, and has its own time.
pub fn time_limit(image: &str) -> Duration {
    match reference::parse(image) {
        Ok(Wanted::Reference { .. }) => deadline::CREATE + deadline::PULL,
        Ok(Wanted::Known(_)) | Err(_) => deadline::CREATE,
    }
}

/// What the steps found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    /// The pull that was needed.
    pull: Option<OperationId>,
    /// The image.
    image: Option<Resolved>,
    /// The kernel of the lab's that it boots, if it is one.
    #[serde(default)]
    kernel: Option<VmKernel>,
    /// What was reserved.
    place: Option<Place>,
    /// The VM's ssh host key.
    ssh_host_key: Option<String>,
    /// Where its ssh server listens.
    ssh_port: Option<u16>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Resolved {
    id: ImageId,
    name: String,
    config: ImageConfig,
    hosts: Vec<HostId>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Place {
    host: HostId,
    address: Ipv4Net,
    gateway: Ipv4Addr,
}

impl Journal {
    fn image(&self) -> Result<&Resolved, StepError> {
        self.image.as_ref().ok_or_else(|| missing("image"))
    }

    fn place(&self) -> Result<&Place, StepError> {
        self.place.as_ref().ok_or_else(|| missing("reservation"))
    }
}

/// A step ran before the one that fills its part of the journal: a defect.
fn missing(what: &str) -> StepError {
    StepError::permanent(ApiError::internal(format!("the journal of this create has no {what}")))
}

impl Kind for Create {
    const NAME: &'static str = "vm.create";
    type Request = CreateOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![
            Box::new(Resolve),
            Box::new(Reserve),
            Box::new(Kernel),
            Box::new(Provision),
            Box::new(Boot),
            Box::new(Ready),
            Box::new(Finish),
        ]
    }

    fn result(&self, order: &CreateOrder, _: &Journal) -> Value {
        json!(VmResult::of(order.vm_id, order.create.name.clone()))
    }
}

/// Finds the image, or has it pulled.
struct Resolve;

#[async_trait]
impl Step<Create> for Resolve {
    fn name(&self) -> &'static str {
        "resolve"
    }

    async fn run(&self, cx: &Context, _: &Create, order: &CreateOrder, journal: &mut Journal) -> Result<(), StepError> {
        let create = &order.create;
        // The reservation decides; this spares the pull of an image for a name that is taken anyway.
        let client = cx.store().client().await?;
        if vm_find(&client, "", create.name.as_str()).await?.is_some_and(|row| row.vm.id != order.vm_id) {
            return Err(StepError::permanent(ReserveError::NameTaken(create.name.clone()).into()));
        }
        drop(client);
        let search = Search { image: &create.image, host: create.host.as_ref(), vm: &create.name, part: None };
        let image = image::resolve(cx, search, &mut journal.pull).await?;
        let name = image.name.to_string();
        journal.kernel = kernel::choose(cx, create.features.kernel.as_ref(), image.id).await?;
        journal.image = Some(Resolved { id: image.id, name, config: image.config, hosts: image.hosts });
        Ok(())
    }

    /// A pull that goes on only for this create is cancelled; an image that was pulled stays.
    async fn undo(&self, cx: &Context, _: &Create, _: &CreateOrder, journal: &Journal) -> Result<(), StepError> {
        if let (Some(pull), None) = (journal.pull, &journal.image) {
            image::give_up(cx, pull).await;
        }
        Ok(())
    }
}

/// Takes name, room and address, and makes the row.
struct Reserve;

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
pub(super) async fn needs(cx: &Context, create: &CreateRequest) -> Result<Needs, StepError> {
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
pub(super) async fn kept_on(cx: &Context, create: &CreateRequest) -> Result<Option<HostId>, StepError> {
    let kept: Vec<&str> =
        create.features.disks.iter().filter(|disk| disk.keep).map(|disk| disk.name.as_str()).collect();
    if kept.is_empty() {
        return Ok(None);
    }
    let client = cx.store().client().await?;
    Ok(disk_host(&client, &kept).await?)
}

/// What a create reserves of its host.
pub(super) fn claim(
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

/// Takes the kernel for the VM, and has it brought to the host. Undone by `reserve`'s undo, which removes the row; the host keeps it for the next.
struct Kernel;

#[async_trait]
impl Step<Create> for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    async fn run(&self, cx: &Context, _: &Create, order: &CreateOrder, journal: &mut Journal) -> Result<(), StepError> {
        let Some(chosen) = &journal.kernel else { return Ok(()) };
        kernel::take(cx, order.vm_id, &order.create.name, chosen).await?;
        kernel::bring(cx, chosen, &journal.place()?.host).await
    }
}

/// Has the host make directory, disk, tap and config drive.
struct Provision;

#[async_trait]
impl Step<Create> for Provision {
    fn name(&self) -> &'static str {
        "provision"
    }

    async fn run(
        &self,
        cx: &Context,
        kind: &Create,
        order: &CreateOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let (image, place, create) = (journal.image()?, journal.place()?, &order.create);
        let spec = VmSpec {
            id: order.vm_id,
            name: create.name.clone(),
            image: image.id,
            config: configured(&image.config, &create.features),
            cpus: create.cpus,
            memory: create.memory,
            disk: create.disk,
            address: place.address,
            gateway: place.gateway,
            mac: mac::of(place.address.addr()),
            domain: kind.0.domain.clone(),
            ssh_keys: create.ssh_keys.clone(),
            features: create.features.clone(),
            kernel: journal.kernel.clone(),
        };
        journal.ssh_host_key = Some(agent::provision(cx, &place.host, spec).await?.ssh_host_key);
        Ok(())
    }

    /// Removes whatever the host made, of this step and those after it.
    async fn undo(&self, cx: &Context, _: &Create, order: &CreateOrder, journal: &Journal) -> Result<(), StepError> {
        // Without a recorded reservation no command was ever sent.
        let Some(place) = &journal.place else { return Ok(()) };
        agent::remove(cx, &place.host, order.vm_id).await
    }
}

/// What the image's author asked to be run, with what this VM wants instead.
fn configured(image: &ImageConfig, features: &Features) -> ImageConfig {
    let mut config = image.clone();
    let name = |variable: &str| variable.split('=').next().map(str::to_owned);
    config.env.retain(|variable| name(variable).is_none_or(|name| !features.env.contains_key(&name)));
    config.env.extend(features.env.iter().map(|(name, value)| format!("{name}={value}")));
    if let Some(entrypoint) = &features.entrypoint {
        config.entrypoint.clone_from(entrypoint);
        // As with containers: the image's command belongs to its own entrypoint.
        config.cmd.clear();
    }
    if let Some(cmd) = &features.cmd {
        config.cmd.clone_from(cmd);
    }
    config
}

/// Starts the VMM. Undone by `provision`'s undo.
struct Boot;

#[async_trait]
impl Step<Create> for Boot {
    fn name(&self) -> &'static str {
        "boot"
    }

    async fn run(&self, cx: &Context, _: &Create, order: &CreateOrder, journal: &mut Journal) -> Result<(), StepError> {
        agent::boot(cx, target(order, journal.place()?)).await
    }
}

/// Waits for the guest. Undone by `provision`'s undo.
struct Ready;

#[async_trait]
impl Step<Create> for Ready {
    fn name(&self) -> &'static str {
        "ready"
    }

    async fn run(&self, cx: &Context, _: &Create, order: &CreateOrder, journal: &mut Journal) -> Result<(), StepError> {
        let facts = agent::await_ready(cx, target(order, journal.place()?)).await?;
        for warning in &facts.warnings {
            tracing::warn!(vm.id = %order.vm_id, vm.name = %order.create.name, %warning, "a guest warns");
        }
        journal.ssh_port = facts.ssh_port;
        Ok(())
    }
}

fn target<'a>(order: &'a CreateOrder, place: &'a Place) -> Target<'a> {
    Target { host: &place.host, vm: order.vm_id, name: &order.create.name }
}

/// Makes the row say that the VM runs. Undone by `reserve`'s undo, which removes the row.
struct Finish;

#[async_trait]
impl Step<Create> for Finish {
    fn name(&self) -> &'static str {
        "finish"
    }

    async fn run(&self, cx: &Context, _: &Create, order: &CreateOrder, journal: &mut Journal) -> Result<(), StepError> {
        let patch = Patch {
            acknowledged: true,
            ssh_host_key: journal.ssh_host_key.clone(),
            ssh_port: journal.ssh_port,
            ..Patch::default()
        };
        rows::apply(cx, order.vm_id, &order.create.name, Event::Ready, &patch).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_vm_wants_wins_over_what_its_image_says() {
        let image: ImageConfig = serde_json::from_value(json!({
            "entrypoint": ["/own"], "cmd": ["--fast"], "env": ["A=image", "B=image", "AB=image"]
        }))
        .unwrap();
        let with = |features: Value| configured(&image, &serde_json::from_value(features).unwrap());
        assert_eq!(with(json!({})), image);
        assert_eq!(with(json!({"env": {"A": "vm", "C": "vm"}})).env, ["B=image", "AB=image", "A=vm", "C=vm"]);
        let other = with(json!({"entrypoint": ["/other", "x"]}));
        assert_eq!((other.entrypoint, other.cmd), (vec!["/other".to_owned(), "x".to_owned()], vec![]));
        assert_eq!(with(json!({"cmd": ["--slow"]})).entrypoint, ["/own"]);
        assert_eq!(with(json!({"cmd": ["--slow"]})).cmd, ["--slow"]);
    }
}

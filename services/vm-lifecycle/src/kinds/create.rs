//! `vm.create`: resolve image and kernel, reserve, bring the kernel there, provision, boot, wait for the guest, say so.
//!
//! Nothing another create could want is held before `reserve`; everything slow comes after it, under the VM claim.

mod reserve;

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use async_trait::async_trait;
use contract::{
    ApiError, HostId, ImageId, OperationId, VmId,
    agent::{VmKernel, VmSpec},
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
        reservation::ReserveError,
        vm::{Patch, vm_find},
    },
    domain::{
        mac,
        reference::{self, Wanted},
        state::Event,
    },
};
use reserve::Reserve;
pub(super) use reserve::{claim, kept_on, needs};

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

//! `image.promote`: find the VM and its host, have that stage an image of the VM's disk, publish it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use contract::{
    ApiError, HostId, ImageId, KernelId, KernelName, VmId,
    agent::{StageSource, StagedImage, VmKernel},
    image::{Image, PromoteRequest, PromotedKernel},
    vm::{self, Vm, VmRef, VmState},
};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    agent, name_taken,
    publish::{Made, Makes, Naming, Publish, Turns, host_of},
};
use crate::db::image::image_named;

/// Makes an image of a VM.
pub struct Promote {
    turns: Arc<Turns>,
}

impl Promote {
    /// With the turns of all publications.
    pub fn new(turns: Arc<Turns>) -> Self {
        Self { turns }
    }
}

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PromoteOrder {
    /// The image it makes, minted with the operation.
    pub image_id: ImageId,
    /// What was asked for.
    pub promote: PromoteRequest,
    /// The kernel that was named, which was there when this was asked for.
    #[serde(default)]
    pub kernel: Option<KernelId>,
}

/// What the steps found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    vm: Option<VmId>,
    host: Option<HostId>,
    /// The VM's other disks, which no image has.
    #[serde(default)]
    left_out: Vec<String>,
    /// The kernel of the lab's that the VM boots.
    #[serde(default)]
    kernel: Option<VmKernel>,
    /// One that is its host's alone, which no image can name.
    #[serde(default)]
    host_kernel: Option<KernelName>,
    staged: Option<StagedImage>,
    image: Option<Image>,
}

impl Kind for Promote {
    const NAME: &'static str = "image.promote";
    type Request = PromoteOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Find), Box::new(Stage), Box::new(Publish)]
    }

    fn result(&self, order: &PromoteOrder, journal: &Journal) -> Value {
        let left = order.promote.kernel.is_of_vm().then(|| kernel_left_out(journal)).flatten();
        json!({ "image": journal.image, "left_out": journal.left_out, "kernel_left_out": left })
    }
}

/// What the VM boots and the image does not name: a kernel of its host's alone, one that was removed meanwhile, or another than the one that an
/// image names which was here already.
fn kernel_left_out(journal: &Journal) -> Option<String> {
    let named = journal.image.as_ref().and_then(|image| image.kernel.as_ref()).map(|kernel| kernel.id);
    let unnamed = journal.kernel.as_ref().filter(|kernel| Some(kernel.id) != named);
    unnamed.map(|kernel| kernel.release.clone()).or_else(|| journal.host_kernel.as_ref().map(ToString::to_string))
}

impl Makes for Promote {
    fn turns(&self) -> &Turns {
        &self.turns
    }

    fn made(order: &PromoteOrder) -> Made<'_> {
        let promote = &order.promote;
        Made {
            id: order.image_id,
            name: &promote.name,
            source: format!("vm {}", promote.vm),
            replace: promote.replace,
            yields: false,
            kernel: match promote.kernel {
                PromotedKernel::OfVm => Naming::Untold,
                PromotedKernel::Default | PromotedKernel::Named(_) => Naming::Asked(order.kernel),
            },
        }
    }

    fn inherits(journal: &Journal) -> Option<KernelId> {
        journal.kernel.as_ref().map(|kernel| kernel.id)
    }

    fn host(journal: &Journal) -> Option<&HostId> {
        journal.host.as_ref()
    }

    fn staged(journal: &Journal) -> Option<&StagedImage> {
        journal.staged.as_ref()
    }

    fn published(journal: &mut Journal, image: Image) {
        journal.image = Some(image);
    }
}

/// How long it is waited for vm-lifecycle, which may be starting anew.
const PATIENCE: Duration = Duration::from_secs(15);
/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(500);

/// Finds the VM that the name means now. Has no effect anywhere.
struct Find;

#[async_trait]
impl Step<Promote> for Find {
    fn name(&self) -> &'static str {
        "find"
    }

    async fn run(
        &self,
        cx: &Context,
        _: &Promote,
        order: &PromoteOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let promote = &order.promote;
        let give_up = Instant::now() + PATIENCE;
        let vm = loop {
            cx.checkpoint()?;
            let asked = VmRef { vm: promote.vm.clone() };
            match cx.unless_cancelled(cx.bus().call::<vm::Get>(&asked)).await? {
                Ok(vm) => break vm,
                Err(error) if error.retryable && Instant::now() < give_up => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(StepError::permanent(error)),
            }
        };
        judge(&vm).map_err(StepError::permanent)?;
        // The publication decides; but what is lost already need not be copied.
        if !promote.replace {
            let client = cx.store().client().await?;
            if let Some(holder) = image_named(&client, &promote.name).await? {
                return Err(StepError::permanent(name_taken(&promote.name, Some(&holder.source), Some("--replace"))));
            }
        }
        journal.left_out = vm.features.disks.iter().map(|disk| disk.name.to_string()).collect();
        journal.host_kernel = vm.features.kernel.filter(|_| vm.booted.is_none());
        journal.kernel = vm.booted;
        (journal.vm, journal.host) = (Some(vm.id), Some(vm.host));
        Ok(())
    }
}

/// Refuses a VM whose disk is not to be had. The host decides by what is true there.
fn judge(vm: &Vm) -> Result<(), ApiError> {
    let name = &vm.name;
    if vm.host_down {
        return Err(ApiError::unavailable(format!("the host {} of the VM {name} is down", vm.host))
            .hint("its disk is there and nowhere else: start that host's agent"));
    }
    let refuse =
        |what: &str, hint: String| Err(ApiError::failed_precondition(format!("the VM {name} {what}")).hint(hint));
    match vm.state {
        VmState::Running | VmState::Stopped | VmState::Failed => Ok(()),
        VmState::Creating | VmState::Starting => {
            refuse("is only starting", "wait until it is ready, then promote it".into())
        }
        VmState::Stopping => refuse("is being stopped", "wait until it is, then promote it".into()),
        VmState::Paused => refuse(
            "is paused, with work in its memory that is not on its disk yet",
            format!("`warren vm resume {name}`, or `warren vm stop {name}`, and promote it then"),
        ),
        VmState::Deleting => refuse("is being deleted", "`warren vm ls` lists the VMs".into()),
    }
}

/// Has the host copy the disk and make an image of it: slow, and nothing is locked.
struct Stage;

#[async_trait]
impl Step<Promote> for Stage {
    fn name(&self) -> &'static str {
        "stage"
    }

    async fn run(
        &self,
        cx: &Context,
        _: &Promote,
        order: &PromoteOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let missing = || StepError::permanent(ApiError::internal("the journal of this promotion names no VM"));
        let source = StageSource::Vm {
            vm: journal.vm.ok_or_else(missing)?,
            ssh_keys: order.promote.ssh_keys.clone(),
            keep_identity: order.promote.keep_identity,
        };
        journal.staged = Some(agent::stage(cx, host_of::<Promote>(journal)?, source).await?);
        Ok(())
    }

    async fn undo(&self, cx: &Context, _: &Promote, _: &PromoteOrder, journal: &Journal) -> Result<(), StepError> {
        Ok(agent::discard(cx, host_of::<Promote>(journal)?).await?)
    }
}

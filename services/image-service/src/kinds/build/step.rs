//! `image.build_step`: a VM made of the base, the script run in it, its disk made an image, the VM deleted.
//!
//! Steps of one key exclude each other: who comes second finds what the first one gave.

use std::sync::Arc;

use async_trait::async_trait;
use contract::{
    ApiError, ImageId, ImageName, MebiBytes, OperationId, VmId,
    agent::{StageSource, StagedImage},
    feature::NetworkMode,
    image::BuildStep as Recipe,
};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    log::{self, Log},
    script,
    vm::{self, Machine},
};
use crate::{
    db::{
        build_cache::{Hit, cache_use},
        name::name_hold,
    },
    kinds::{
        agent,
        publish::{Turns, claim_lost, settle, take_back},
    },
};

/// Makes the image of one step.
pub struct BuildStep {
    turns: Arc<Turns>,
}

impl BuildStep {
    /// With the turns of all publications.
    pub fn new(turns: Arc<Turns>) -> Self {
        Self { turns }
    }

    /// What steps of the same key exclude each other by.
    pub fn resource(key: &str) -> String {
        format!("image-build-step:{key}")
    }
}

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepOrder {
    /// The image it makes, minted with the operation.
    pub image_id: ImageId,
    /// The build it belongs to.
    pub build: OperationId,
    /// The name that build is for.
    pub name: ImageName,
    /// Which step it is, from 0.
    pub number: usize,
    /// Of how many.
    pub of: usize,
    /// What its result is remembered by.
    pub key: String,
    /// What it begins with.
    pub base: Hit,
    /// What is done.
    pub step: Recipe,
    /// Virtual CPUs of the VM.
    pub cpus: u32,
    /// Its memory.
    pub memory: MebiBytes,
    /// Its disk.
    pub disk: MebiBytes,
    /// Whom its network reaches.
    pub network: NetworkMode,
    /// How long the script may run, in seconds.
    pub script_seconds: u64,
    /// Run it, whatever is known.
    pub no_cache: bool,
}

/// What the steps found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    /// It is known what it gives: nothing is done.
    known: Option<Hit>,
    machine: Option<Machine>,
    staged: Option<StagedImage>,
    gave: Option<Hit>,
}

impl Journal {
    fn machine(&self) -> Result<&Machine, StepError> {
        let missing = || StepError::permanent(ApiError::internal("the journal of this build step names no VM"));
        self.machine.as_ref().ok_or_else(missing)
    }
}

impl Kind for BuildStep {
    const NAME: &'static str = "image.build_step";
    type Request = StepOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![
            Box::new(Look),
            Box::new(Create),
            Box::new(Run),
            Box::new(Stop),
            Box::new(Stage),
            Box::new(Keep),
            Box::new(Remove),
        ]
    }

    fn result(&self, _: &StepOrder, journal: &Journal) -> Value {
        json!(journal.gave)
    }
}

/// Looks whether another build has made it meanwhile. Has no effect anywhere.
struct Look;

#[async_trait]
impl Step<BuildStep> for Look {
    fn name(&self) -> &'static str {
        "look"
    }

    async fn run(
        &self,
        cx: &Context,
        _: &BuildStep,
        order: &StepOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        if !order.no_cache {
            let client = cx.store().client().await?;
            journal.known = cache_use(&client, &order.key).await?;
            journal.gave.clone_from(&journal.known);
        }
        Ok(())
    }
}

/// Makes the VM.
struct Create;

#[async_trait]
impl Step<BuildStep> for Create {
    fn name(&self) -> &'static str {
        "create"
    }

    async fn run(
        &self,
        cx: &Context,
        _: &BuildStep,
        order: &StepOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        if journal.known.is_none() {
            let begins = log::begins(order, &vm::name(cx.operation())?);
            Log::new(order.build, order.number).note(cx, &begins).await?;
            journal.machine = Some(vm::create(cx, order).await?);
        }
        Ok(())
    }

    async fn undo(&self, cx: &Context, _: &BuildStep, order: &StepOrder, journal: &Journal) -> Result<(), StepError> {
        match &journal.known {
            Some(_) => Ok(()),
            None => vm::undo(cx, order).await,
        }
    }
}

/// Puts the files there and runs the script. The VM goes with all it did.
struct Run;

#[async_trait]
impl Step<BuildStep> for Run {
    fn name(&self) -> &'static str {
        "run"
    }

    async fn run(
        &self,
        cx: &Context,
        _: &BuildStep,
        order: &StepOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        if journal.known.is_some() {
            return Ok(());
        }
        script::run(cx, journal.machine()?, order).await
    }
}

/// Powers the VM off, so that its file system is whole.
struct Stop;

#[async_trait]
impl Step<BuildStep> for Stop {
    fn name(&self) -> &'static str {
        "stop"
    }

    async fn run(&self, cx: &Context, _: &BuildStep, _: &StepOrder, journal: &mut Journal) -> Result<(), StepError> {
        if journal.known.is_some() {
            return Ok(());
        }
        vm::stop(cx, journal.machine()?).await
    }
}

/// Has the host make an image of the VM's disk.
struct Stage;

#[async_trait]
impl Step<BuildStep> for Stage {
    fn name(&self) -> &'static str {
        "stage"
    }

    async fn run(&self, cx: &Context, _: &BuildStep, _: &StepOrder, journal: &mut Journal) -> Result<(), StepError> {
        if journal.known.is_some() {
            return Ok(());
        }
        let machine = journal.machine()?;
        let source = StageSource::Vm { vm: machine.id, ssh_keys: Vec::new(), keep_identity: false };
        journal.staged = Some(agent::stage(cx, &machine.host, source).await?);
        Ok(())
    }

    async fn undo(&self, cx: &Context, _: &BuildStep, _: &StepOrder, journal: &Journal) -> Result<(), StepError> {
        match &journal.machine {
            Some(machine) => Ok(agent::discard(cx, &machine.host).await?),
            None => Ok(()),
        }
    }
}

/// Publishes the image without a name, and remembers it.
struct Keep;

impl Keep {
    /// A name that is held while the image is published, and given up then: no other operation asks for it.
    fn name(cx: &Context) -> Result<ImageName, StepError> {
        let name = format!("build-{}", VmId(cx.operation().0).tail());
        name.parse().map_err(|error| StepError::permanent(ApiError::internal(format!("{name} is no name: {error}"))))
    }
}

#[async_trait]
impl Step<BuildStep> for Keep {
    fn name(&self) -> &'static str {
        "publish"
    }

    async fn run(
        &self,
        cx: &Context,
        kind: &BuildStep,
        order: &StepOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        if journal.known.is_some() {
            return Ok(());
        }
        let missing = || StepError::permanent(ApiError::internal("the journal of this build step has nothing staged"));
        let (host, staged) = (&journal.machine()?.host, journal.staged.as_ref().ok_or_else(missing)?);
        let (name, lost) = (Self::name(cx)?, || StepError::retry(claim_lost()));
        let hit = {
            let _turn = kind.turns.take().await?;
            let mut client = cx.store().client().await?;
            let held = name_hold(&mut client, &name, order.image_id, cx.fence()).await?;
            let own = held.holder.is_none();
            let source = format!("build of {} from {}", order.name, order.base.digest);
            let image = held.image(order.image_id, &source, staged).await?;
            if image == order.image_id {
                held.boots_as(image, order.base.image).await?;
            }
            settle::<BuildStep>(cx, &held, image, &staged.digest, host).await?;
            held.remember(&order.key, image, own.then_some(&name)).await?.ok_or_else(lost)?
        };
        // Not needed where the files were there already. What cannot be removed now the reconciler finds.
        if let Err(error) = agent::discard(cx, host).await {
            tracing::warn!(host.id = %host, %error, "a staging is left");
        }
        Log::new(order.build, order.number).note(cx, &log::gave(order, &hit.digest)).await?;
        tracing::info!(image.id = %hit.image, image.digest = %hit.digest, host.id = %host, "built");
        journal.gave = Some(hit);
        Ok(())
    }

    async fn undo(&self, cx: &Context, _: &BuildStep, order: &StepOrder, journal: &Journal) -> Result<(), StepError> {
        match &journal.machine {
            Some(machine) => take_back(cx, &machine.host, order.image_id, &Self::name(cx)?).await,
            None => Ok(()),
        }
    }
}

/// Deletes the VM. What cannot be deleted now goes when its time to live is over: the image is whole without that.
struct Remove;

#[async_trait]
impl Step<BuildStep> for Remove {
    fn name(&self) -> &'static str {
        "remove"
    }

    async fn run(&self, cx: &Context, _: &BuildStep, _: &StepOrder, journal: &mut Journal) -> Result<(), StepError> {
        let Some(machine) = &journal.machine else { return Ok(()) };
        if let Err(failure) = vm::delete(cx, machine.id).await {
            tracing::warn!(vm.id = %machine.id, error = %failure.error, "the VM of a build is left to its time to live");
        }
        Ok(())
    }
}

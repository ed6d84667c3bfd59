//! `kernel.import`: choose a host, have it stage the kernel, publish it under its name.

use std::sync::Arc;

use async_trait::async_trait;
use contract::{
    ApiError, HostId, KernelId,
    agent::{StageKernelSource, StagedKernel},
    kernel::{ImportRequest, Kernel, KernelSource},
};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{agent, name_taken, nothing_left};
use crate::{
    db::kernel::{
        lookup::kernel_named,
        name::{Held, kernel_name_hold},
        removal::{removal_done, removal_list},
        withdrawal::{Taken, Withdrawn, kernel_withdraw},
    },
    kinds::{
        place::{Place, Placed},
        publish::{Turns, claim_lost},
    },
};

/// Imports a kernel.
pub struct Import {
    turns: Arc<Turns>,
}

impl Import {
    /// With the turns of all publications.
    pub fn new(turns: Arc<Turns>) -> Self {
        Self { turns }
    }
}

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImportOrder {
    /// The kernel it makes, minted with the operation.
    pub kernel_id: KernelId,
    /// What was asked for.
    pub import: ImportRequest,
}

/// What the steps found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    host: Option<HostId>,
    staged: Option<StagedKernel>,
    kernel: Option<Kernel>,
}

impl Journal {
    fn host(&self) -> Result<&HostId, StepError> {
        let missing = || StepError::permanent(ApiError::internal("the journal of this import names no host"));
        self.host.as_ref().ok_or_else(missing)
    }
}

impl Kind for Import {
    const NAME: &'static str = "kernel.import";
    type Request = ImportOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Place), Box::new(Stage), Box::new(Publish)]
    }

    fn result(&self, _: &ImportOrder, journal: &Journal) -> Value {
        json!(journal.kernel)
    }
}

impl Placed for Import {
    fn wanted(order: &ImportOrder) -> Option<&HostId> {
        order.import.host.as_ref()
    }

    fn placed(journal: &mut Journal, host: HostId) {
        journal.host = Some(host);
    }
}

/// Has the host take the files, unpack and look at them: slow, and nothing is locked.
struct Stage;

#[async_trait]
impl Step<Import> for Stage {
    fn name(&self) -> &'static str {
        "stage"
    }

    async fn run(&self, cx: &Context, _: &Import, order: &ImportOrder, journal: &mut Journal) -> Result<(), StepError> {
        let source = match &order.import.source {
            KernelSource::Path(path) => StageKernelSource::Path(path.clone()),
            KernelSource::Upload { session, .. } => StageKernelSource::Stream(*session),
        };
        // Where an upload breaks off it goes on within this; what failed is not tried again with the same.
        let staged = agent::stage(cx, journal.host()?, &source, None).await?;
        journal.staged = Some(staged.map_err(StepError::permanent)?);
        // The publication decides; this spares it what is lost already.
        let client = cx.store().client().await?;
        let digest = journal.staged.as_ref().map(|staged| &staged.digest);
        match kernel_named(&client, &order.import.name).await? {
            Some(holder) if Some(&holder.digest) != digest && !order.import.replace => {
                Err(StepError::permanent(name_taken(&order.import.name)))
            }
            _ => Ok(()),
        }
    }

    async fn undo(&self, cx: &Context, _: &Import, _: &ImportOrder, journal: &Journal) -> Result<(), StepError> {
        Ok(agent::discard(cx, journal.host()?).await?)
    }
}

/// The publication atom: name locked → looked at again → digest looked for → files renamed → rows inserted → committed.
struct Publish;

#[async_trait]
impl Step<Import> for Publish {
    fn name(&self) -> &'static str {
        "publish"
    }

    async fn run(
        &self,
        cx: &Context,
        kind: &Import,
        order: &ImportOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let host = journal.host()?;
        let staged = journal.staged.as_ref();
        let staged =
            staged.ok_or_else(|| StepError::permanent(ApiError::internal("this import has staged nothing")))?;
        let kernel = {
            let _turn = kind.turns.take().await?;
            publish(cx, order, host, staged).await?
        };
        // Not needed where the files were there already. What cannot be removed now goes when the agent starts anew and it is old.
        if let Err(error) = agent::discard(cx, host).await {
            tracing::warn!(host.id = %host, %error, "a staging is left");
        }
        tracing::info!(kernel.id = %kernel.id, kernel.name = %kernel.name, kernel.release = %kernel.release, host.id = %host, "imported");
        journal.kernel = Some(kernel);
        Ok(())
    }

    /// Rows first, if they were committed; then the files. The staging goes before the final directory, so that a rename that arrives late
    /// finds nothing to rename.
    async fn undo(&self, cx: &Context, _: &Import, order: &ImportOrder, journal: &Journal) -> Result<(), StepError> {
        let (host, id) = (journal.host()?, order.kernel_id);
        let mut client = cx.store().client().await?;
        match kernel_withdraw(&mut client, cx.fence(), id, Taken::Made(&order.import.name)).await? {
            Withdrawn::Done => {}
            Withdrawn::ClaimLost => return Err(StepError::retry(claim_lost())),
            Withdrawn::Named | Withdrawn::InUse(_) => {
                tracing::info!(kernel.id = %id, "a kernel whose import was called off is used already, and stays");
                return Ok(agent::discard(cx, host).await?);
            }
        }
        drop(client);
        agent::discard(cx, host).await?;
        agent::remove(cx, host, id).await?;
        let client = cx.store().client().await?;
        for removal in removal_list(&client, id).await?.iter().filter(|removal| removal.host == *host) {
            removal_done(&client, removal).await?;
        }
        Ok(())
    }
}

async fn publish(cx: &Context, order: &ImportOrder, host: &HostId, staged: &StagedKernel) -> Result<Kernel, StepError> {
    let (import, id) = (&order.import, order.kernel_id);
    let mut client = cx.store().client().await?;
    let held = kernel_name_hold(&mut client, &import.name, id, cx.fence()).await?;
    if held.holder.is_some_and(|holder| holder.set_by == Some(cx.operation())) {
        // An earlier try of this step.
        return held.published(id).await?.ok_or_else(|| StepError::retry(claim_lost()));
    }
    check_holder(&held, import, &staged.digest).await?;
    let kernel = held.kernel(id, &import.source.to_string(), staged).await?;
    // Also where the host is to have it already: it may have lost it, and what is whole there stays.
    match agent::publish(cx, host, kernel).await {
        Ok(_) => {
            runtime::fault::point("kernel.import/publish/renamed");
            held.replicate(kernel, host).await?;
        }
        Err(error) if nothing_left(&error) && held.replicated(kernel, host).await? => {}
        Err(error) => return Err(error.into()),
    }
    if kernel != id {
        // An earlier try may have brought the files to a place that is not theirs any more, as somebody else was faster.
        agent::remove(cx, host, id).await?;
    }
    held.point(kernel).await?.ok_or_else(|| StepError::retry(claim_lost()))
}

/// Refuses a name that means another kernel, unless it is to be taken.
async fn check_holder(held: &Held<'_>, import: &ImportRequest, digest: &str) -> Result<(), StepError> {
    match held.holder {
        Some(holder) if !import.replace && held.digest(holder.kernel).await?.as_deref() != Some(digest) => {
            Err(StepError::permanent(name_taken(&import.name)))
        }
        _ => Ok(()),
    }
}

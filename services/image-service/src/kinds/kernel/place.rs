//! `kernel.place`: a host that lacks a kernel, or has lost it, is sent it by one that has it.

use std::sync::Arc;

use async_trait::async_trait;
use contract::{
    ApiError, HostId, KernelId, SessionId,
    agent::StageKernelSource,
    host::{self, Empty, HostState},
    kernel::Kernel,
};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{agent, gone};
use crate::{
    db::kernel::{
        lookup::kernel_get,
        replica::{kernel_keep, kernel_keep_alone},
    },
    kinds::publish::{Turns, claim_lost},
};

/// Brings a kernel to a host.
pub struct KernelPlace {
    turns: Arc<Turns>,
}

impl KernelPlace {
    /// With the turns of all publications.
    pub fn new(turns: Arc<Turns>) -> Self {
        Self { turns }
    }
}

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KernelPlaceOrder {
    /// The kernel.
    pub kernel_id: KernelId,
    /// The host.
    pub host: HostId,
}

/// What the steps found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    kernel: Option<Kernel>,
    /// The host staged it: what is there in its place, if anything, is not whole.
    #[serde(default)]
    fetched: bool,
}

impl Kind for KernelPlace {
    const NAME: &'static str = "kernel.place";
    type Request = KernelPlaceOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Fetch), Box::new(Publish)]
    }

    fn result(&self, _: &KernelPlaceOrder, journal: &Journal) -> Value {
        json!(journal.kernel)
    }
}

/// The kernel as it is now.
async fn kernel(cx: &Context, order: &KernelPlaceOrder) -> Result<Kernel, StepError> {
    let client = cx.store().client().await?;
    let kernel = kernel_get(&client, order.kernel_id).await?;
    kernel.ok_or_else(|| StepError::permanent(gone(order.kernel_id)))
}

/// Has the host stage what another sends it: slow, and nothing is locked.
struct Fetch;

#[async_trait]
impl Step<KernelPlace> for Fetch {
    fn name(&self) -> &'static str {
        "fetch"
    }

    async fn run(
        &self,
        cx: &Context,
        _: &KernelPlace,
        order: &KernelPlaceOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let kernel = kernel(cx, order).await?;
        let noted = kernel.hosts.contains(&order.host);
        journal.fetched = !(noted && agent::whole(cx, &order.host, kernel.id, &kernel.digest).await?);
        if journal.fetched {
            fetch(cx, order, &kernel).await?;
        }
        journal.kernel = Some(kernel);
        Ok(())
    }

    async fn undo(
        &self,
        cx: &Context,
        _: &KernelPlace,
        order: &KernelPlaceOrder,
        _: &Journal,
    ) -> Result<(), StepError> {
        Ok(agent::discard(cx, &order.host).await?)
    }
}

/// Tries the other hosts that have it; a stream that breaks is another host's turn, and then the step's own again. Only where all of them are up
/// and none has it whole is there nothing to wait for.
async fn fetch(cx: &Context, order: &KernelPlaceOrder, kernel: &Kernel) -> Result<(), StepError> {
    let list = cx.unless_cancelled(cx.bus().call::<host::List>(&Empty {})).await??;
    let up = |id: &HostId| list.hosts.iter().any(|host| host.id == *id && host.state == HostState::Up);
    let mut last = None;
    for source in kernel.hosts.iter().filter(|host| **host != order.host) {
        cx.checkpoint()?;
        if !up(source) {
            last.get_or_insert_with(|| down(kernel));
            continue;
        }
        if !agent::whole(cx, source, kernel.id, &kernel.digest).await? {
            tracing::warn!(host.id = %source, kernel.id = %kernel.id, "a host has lost a kernel");
            continue;
        }
        match sent(cx, order, kernel, source).await? {
            Ok(()) => return Ok(()),
            Err(error) => last = Some(error),
        }
        // What failed is forgotten, so that the next try begins anew: under a newer claim, or as the repeat of this one.
        tracing::info!(host.id = %source, kernel.id = %kernel.id, error = ?last, "a kernel did not come whole");
    }
    Err(last.map_or_else(|| StepError::permanent(lost(kernel, &order.host)), StepError::retry))
}

/// Has one host send it and the other take it.
async fn sent(
    cx: &Context,
    order: &KernelPlaceOrder,
    kernel: &Kernel,
    source: &HostId,
) -> Result<Result<(), ApiError>, StepError> {
    let session = SessionId::new();
    if let Err(error) = agent::send(cx, source, kernel.id, session).await {
        return Ok(Err(error));
    }
    let from = StageKernelSource::Stream(session);
    Ok(agent::stage(cx, &order.host, &from, Some(&kernel.digest)).await?.map(drop))
}

fn down(kernel: &Kernel) -> ApiError {
    ApiError::unavailable(format!("no host that has the kernel {} is up", kernel.name))
        .hint("`warren kernel show` tells which hosts have it, `warren host ls` which are up")
}

/// A kernel that nobody has who could send it.
fn lost(kernel: &Kernel, host: &HostId) -> ApiError {
    let name = &kernel.name;
    ApiError::failed_precondition(format!("no other host has the kernel {name} (Linux {}), and {host} lacks its files", kernel.release))
        .hint(format!(
            "import the same files again, which came from {}: `warren kernel import {name} FILE... --host {host}`; `warren kernel show {name}` tells its digest",
            kernel.source
        ))
}

/// Files renamed and row inserted while the kernel is kept.
struct Publish;

#[async_trait]
impl Step<KernelPlace> for Publish {
    fn name(&self) -> &'static str {
        "publish"
    }

    async fn run(
        &self,
        cx: &Context,
        kind: &KernelPlace,
        order: &KernelPlaceOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        {
            let _turn = kind.turns.take().await?;
            let mut client = cx.store().client().await?;
            let placing = kernel_keep(&mut client, order.kernel_id, cx.fence()).await?;
            let placing = placing.ok_or_else(|| StepError::permanent(gone(order.kernel_id)))?;
            if journal.fetched || !placing.there(&order.host).await? {
                agent::publish(cx, &order.host, order.kernel_id).await?;
                runtime::fault::point("kernel.place/publish/renamed");
                if !placing.placed(&order.host).await? {
                    return Err(StepError::retry(claim_lost()));
                }
            }
        }
        // There is one where the kernel had come by another way meanwhile. What cannot be removed now goes when it is old.
        if let Err(error) = agent::discard(cx, &order.host).await {
            tracing::warn!(host.id = %order.host, %error, "a staging is left");
        }
        tracing::info!(kernel.id = %order.kernel_id, host.id = %order.host, "a host has another kernel");
        journal.kernel = Some(kernel(cx, order).await?);
        Ok(())
    }

    /// A kernel that is there does no harm, and somebody may use it by now; one without its row is removed, while nobody else is about to take it
    /// for its own.
    async fn undo(
        &self,
        cx: &Context,
        _: &KernelPlace,
        order: &KernelPlaceOrder,
        _: &Journal,
    ) -> Result<(), StepError> {
        agent::discard(cx, &order.host).await?;
        let mut client = cx.store().client().await?;
        let placing = kernel_keep_alone(&mut client, order.kernel_id, cx.fence()).await?;
        let there = match &placing {
            Some(placing) => placing.there(&order.host).await?,
            None => false,
        };
        if !there {
            agent::remove(cx, &order.host, order.kernel_id).await?;
        }
        Ok(())
    }
}

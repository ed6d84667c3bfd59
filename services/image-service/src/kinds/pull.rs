//! `image.pull`: choose a host, ask it what the source means, have it stage the image unless that is here, publish it.

use std::sync::Arc;

use async_trait::async_trait;
use contract::{
    ApiError, ErrorCode, HostId, ImageId,
    agent::StagedImage,
    image::{Image, PullRequest},
};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    agent, name_taken,
    place::{Place, Placed, another},
    publish::{Made, Makes, Naming, Publish, Turns, attach, host_of},
};
use crate::db::image::{image_named, image_of_digest};

/// Pulls an image from a registry or an OCI layout.
pub struct Pull {
    turns: Arc<Turns>,
}

impl Pull {
    /// With the turns of all publications.
    pub fn new(turns: Arc<Turns>) -> Self {
        Self { turns }
    }
}

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PullOrder {
    /// The image it makes, minted with the operation.
    pub image_id: ImageId,
    /// What was asked for.
    pub pull: PullRequest,
}

/// What the steps found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    host: Option<HostId>,
    /// The digest that the source means is here: under this id, where it is wanted.
    #[serde(default)]
    here: Option<ImageId>,
    /// A kernel comes along.
    #[serde(default)]
    brings_kernel: bool,
    staged: Option<StagedImage>,
    image: Option<Image>,
}

impl Kind for Pull {
    const NAME: &'static str = "image.pull";
    type Request = PullOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Place), Box::new(Resolve), Box::new(Stage), Box::new(Name)]
    }

    fn result(&self, _: &PullOrder, journal: &Journal) -> Value {
        json!(journal.image)
    }
}

impl Placed for Pull {
    fn wanted(order: &PullOrder) -> Option<&HostId> {
        order.pull.host.as_ref()
    }

    fn placed(journal: &mut Journal, host: HostId) {
        journal.host = Some(host);
    }
}

impl Makes for Pull {
    fn turns(&self) -> &Turns {
        &self.turns
    }

    fn made(order: &PullOrder) -> Made<'_> {
        let pull = &order.pull;
        Made {
            id: order.image_id,
            name: &pull.name,
            source: pull.source.to_string(),
            replace: pull.if_newer,
            yields: true,
            kernel: Naming::Untold,
        }
    }

    fn host(journal: &Journal) -> Option<&HostId> {
        journal.host.as_ref()
    }

    fn staged(journal: &Journal) -> Option<&StagedImage> {
        journal.staged.as_ref()
    }

    fn brings_kernel(journal: &Journal) -> bool {
        journal.brings_kernel || journal.staged.as_ref().is_some_and(|staged| staged.kernel.is_some())
    }

    fn published(journal: &mut Journal, image: Image) {
        journal.image = Some(image);
    }
}

/// Asks what the source means, before anything is downloaded. Has no effect anywhere.
struct Resolve;

#[async_trait]
impl Step<Pull> for Resolve {
    fn name(&self) -> &'static str {
        "resolve"
    }

    async fn run(&self, cx: &Context, _: &Pull, order: &PullOrder, journal: &mut Journal) -> Result<(), StepError> {
        let resolved = match agent::resolve(cx, host_of::<Pull>(journal)?, &order.pull.source).await? {
            Ok(resolved) => resolved,
            Err(error) if error.retryable => {
                // An agent from before, or a registry that is away for a moment: the staging finds out.
                tracing::info!(%error, "what the source means is found out by staging it");
                return Ok(());
            }
            Err(error) => return Err(StepError::permanent(error)),
        };
        journal.brings_kernel = resolved.kernel.is_some();
        let client = cx.store().client().await?;
        let wanted = order.pull.host.as_ref();
        let here = image_of_digest(&client, &resolved.digest).await?;
        journal.here = here
            .filter(|(_, hosts)| wanted.map_or(!hosts.is_empty(), |host| hosts.contains(host)))
            .map(|(image, _)| image);
        // The publication decides; but what is lost already need not be downloaded.
        match image_named(&client, &order.pull.name).await? {
            Some(holder) if holder.digest != resolved.digest && !order.pull.if_newer => {
                Err(StepError::permanent(name_taken(&order.pull.name, Some(&holder.source), Some("--if-newer"))))
            }
            _ => Ok(()),
        }
    }
}

/// Has the host download, verify and unpack: slow, and nothing is locked. Where nobody asked for that host and it has no room, the next
/// one has its turn.
struct Stage;

#[async_trait]
impl Step<Pull> for Stage {
    fn name(&self) -> &'static str {
        "stage"
    }

    async fn run(&self, cx: &Context, _: &Pull, order: &PullOrder, journal: &mut Journal) -> Result<(), StepError> {
        if journal.here.is_some() {
            return Ok(());
        }
        let mut full = Vec::new();
        loop {
            let host = host_of::<Pull>(journal)?.clone();
            let failure = match agent::stage(cx, &host, order.pull.source.clone()).await {
                Ok(staged) => {
                    journal.staged = Some(staged);
                    return Ok(());
                }
                Err(failure) => failure,
            };
            if failure.error.code != ErrorCode::ResourceExhausted || order.pull.host.is_some() {
                return Err(failure);
            }
            full.push(host.clone());
            let Some(next) = another(cx, &full).await? else { return Err(failure) };
            tracing::info!(host.id = %host, next.id = %next, error = %failure.error, "a host has no room for the image; the next one is asked");
            // Should it not be heard, or this worker die before it is recorded where the image is made now, the reconciler finds what is left.
            if let Err(error) = agent::discard(cx, &host).await {
                tracing::warn!(host.id = %host, %error, "a staging is left");
            }
            journal.host = Some(next);
        }
    }

    async fn undo(&self, cx: &Context, _: &Pull, _: &PullOrder, journal: &Journal) -> Result<(), StepError> {
        Ok(agent::discard(cx, host_of::<Pull>(journal)?).await?)
    }
}

/// The publication. A digest that was here needs none but the name, if it is here still.
struct Name;

#[async_trait]
impl Step<Pull> for Name {
    fn name(&self) -> &'static str {
        "publish"
    }

    async fn run(&self, cx: &Context, kind: &Pull, order: &PullOrder, journal: &mut Journal) -> Result<(), StepError> {
        if let Some(here) = journal.here {
            let made = Pull::made(order);
            if let Some(image) = attach(cx, &kind.turns, &made, here, order.pull.host.as_ref()).await? {
                tracing::info!(image.id = %image.id, image.name = %made.name, image.digest = %image.digest, "here already");
                journal.image = Some(image);
                return Ok(());
            }
            let staged = agent::stage(cx, host_of::<Pull>(journal)?, order.pull.source.clone()).await?;
            if staged.kernel.is_some() && !journal.brings_kernel {
                // An undo would not know of it.
                let error = ApiError::aborted("what the source means changed meanwhile");
                return Err(StepError::permanent(error.hint("pull it again")));
            }
            journal.staged = Some(staged);
        }
        Step::<Pull>::run(&Publish, cx, kind, order, journal).await
    }

    async fn undo(&self, cx: &Context, kind: &Pull, order: &PullOrder, journal: &Journal) -> Result<(), StepError> {
        Step::<Pull>::undo(&Publish, cx, kind, order, journal).await
    }
}

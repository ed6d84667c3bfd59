//! `image.pull`: choose a host, have it stage the image, publish it.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use contract::{
    ApiError, HostId, ImageId,
    agent::StagedImage,
    host::{self, Empty},
    image::{Image, PullRequest},
};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{agent, name_taken};
use crate::{
    db::{
        image::name_holder,
        publication::{Withdrawn, image_withdraw, name_hold},
        removal::{removal_done, removal_list},
    },
    domain::placement,
};

/// Pulls an image from a registry or an OCI layout.
pub struct Pull {
    publications: Semaphore,
}

impl Pull {
    /// At most this many publications at once in this process: each keeps a database connection while it waits for its
    /// name or its host, and leases must be renewed and requests answered meanwhile.
    pub fn new(publications: usize) -> Self {
        Self { publications: Semaphore::new(publications.max(1)) }
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
    staged: Option<StagedImage>,
    image: Option<Image>,
}

impl Journal {
    fn host(&self) -> Result<&HostId, StepError> {
        self.host
            .as_ref()
            .ok_or_else(|| StepError::permanent(ApiError::internal("the journal of this pull names no host")))
    }
}

impl Kind for Pull {
    const NAME: &'static str = "image.pull";
    type Request = PullOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Place), Box::new(Stage), Box::new(Publish)]
    }

    fn result(&self, _: &PullOrder, journal: &Journal) -> Value {
        json!(journal.image)
    }
}

/// How long a pull waits for a host to be up: longer than it takes until hosts are heard of after vm-lifecycle or
/// NATS was away.
const PLACE_PATIENCE: Duration = Duration::from_secs(15);
/// Pause between two looks at the hosts.
const PLACE_PAUSE: Duration = Duration::from_millis(500);

/// Chooses the host. Has no effect anywhere.
struct Place;

#[async_trait]
impl Step<Pull> for Place {
    fn name(&self) -> &'static str {
        "place"
    }

    async fn run(&self, cx: &Context, _: &Pull, order: &PullOrder, journal: &mut Journal) -> Result<(), StepError> {
        let client = cx.store().client().await?;
        // The publication decides; but what is lost already need not be downloaded.
        if let Some((_, source)) = name_holder(&client, &order.pull.name).await? {
            return Err(StepError::permanent(name_taken(&order.pull.name, Some(&source))));
        }
        drop(client);
        let give_up = Instant::now() + PLACE_PATIENCE;
        loop {
            cx.checkpoint()?;
            let hosts = cx.unless_cancelled(cx.bus().call::<host::List>(&Empty {})).await?;
            match hosts.and_then(|list| placement::choose(&list.hosts, order.pull.host.as_ref())) {
                Ok(host) => {
                    journal.host = Some(host);
                    return Ok(());
                }
                Err(error) if error.retryable && Instant::now() < give_up => tokio::time::sleep(PLACE_PAUSE).await,
                Err(error) => return Err(StepError::permanent(error)),
            }
        }
    }
}

/// Has the host download, verify and unpack: slow, and nothing is locked.
struct Stage;

#[async_trait]
impl Step<Pull> for Stage {
    fn name(&self) -> &'static str {
        "stage"
    }

    async fn run(&self, cx: &Context, _: &Pull, order: &PullOrder, journal: &mut Journal) -> Result<(), StepError> {
        journal.staged = Some(agent::stage(cx, journal.host()?, &order.pull.source).await?);
        Ok(())
    }

    async fn undo(&self, cx: &Context, _: &Pull, _: &PullOrder, journal: &Journal) -> Result<(), StepError> {
        Ok(agent::discard(cx, journal.host()?).await?)
    }
}

/// The publication atom: name locked → looked at again → files renamed → rows inserted → committed.
///
/// A repeat finds its own image published, or does it all again: the rename of what is renamed already is nothing.
struct Publish;

#[async_trait]
impl Step<Pull> for Publish {
    fn name(&self) -> &'static str {
        "publish"
    }

    async fn run(&self, cx: &Context, kind: &Pull, order: &PullOrder, journal: &mut Journal) -> Result<(), StepError> {
        let (id, name, host) = (order.image_id, &order.pull.name, journal.host()?);
        let Ok(_turn) = kind.publications.acquire().await else {
            return Err(StepError::retry(ApiError::unavailable("this worker publishes nothing any more")));
        };
        let mut client = cx.store().client().await?;
        let held = name_hold(&mut client, name, id).await?;
        let image = match held.holder {
            Some(holder) if holder == id => held.published(id).await?,
            Some(_) => return Err(StepError::permanent(name_taken(name, None))),
            None => {
                let staged = agent::publish(cx, host, id).await?;
                runtime::fault::point("image.pull/publish/renamed");
                let source = order.pull.source.to_string();
                held.publish(cx.fence(), id, &source, &staged, host).await?
            }
        };
        let image = image.ok_or_else(|| StepError::retry(claim_lost()))?;
        tracing::info!(image.id = %id, image.name = %name, image.digest = %image.digest, host.id = %host, "published");
        journal.image = Some(image);
        Ok(())
    }

    /// Rows first, if they were committed; then the files. The staging goes before the final directory, so that a
    /// rename that arrives late finds nothing to rename.
    async fn undo(&self, cx: &Context, _: &Pull, order: &PullOrder, journal: &Journal) -> Result<(), StepError> {
        let (id, host) = (order.image_id, journal.host()?);
        let mut client = cx.store().client().await?;
        match image_withdraw(&mut client, cx.fence(), id).await? {
            Withdrawn::Done => {}
            Withdrawn::ClaimLost => return Err(StepError::retry(claim_lost())),
            Withdrawn::InUse(users) => {
                tracing::warn!(image.id = %id, users = users.count, "the image stays: VMs use it already");
                return Ok(());
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

/// What a worker is told whose lease ran out; nobody else ever reads it.
pub(super) fn claim_lost() -> ApiError {
    ApiError::aborted("another worker has the operation")
}

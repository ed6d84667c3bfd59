//! `image.pull`: choose a host, have it stage the image, publish it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use contract::{
    HostId, ImageId,
    agent::StagedImage,
    host::{self, Empty},
    image::{Image, PullRequest},
};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    agent, name_taken,
    publish::{Made, Makes, Publish, Turns, host_of},
};
use crate::{db::image::name_holder, domain::placement};

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
    staged: Option<StagedImage>,
    image: Option<Image>,
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

impl Makes for Pull {
    fn turns(&self) -> &Turns {
        &self.turns
    }

    fn made(order: &PullOrder) -> Made<'_> {
        Made { id: order.image_id, name: &order.pull.name, source: order.pull.source.to_string() }
    }

    fn host(journal: &Journal) -> Option<&HostId> {
        journal.host.as_ref()
    }

    fn published(journal: &mut Journal, image: Image) {
        journal.image = Some(image);
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
        journal.staged = Some(agent::stage(cx, host_of::<Pull>(journal)?, &order.pull.source).await?);
        Ok(())
    }

    async fn undo(&self, cx: &Context, _: &Pull, _: &PullOrder, journal: &Journal) -> Result<(), StepError> {
        Ok(agent::discard(cx, host_of::<Pull>(journal)?).await?)
    }
}

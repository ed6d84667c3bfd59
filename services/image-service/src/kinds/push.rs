//! `image.push`: choose a host that has the image, and have it pack and push it.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use contract::{
    ApiError, ErrorCode, HostId, ImageId,
    agent::PushedBundle,
    host::{self, Empty},
    image::PushRequest,
};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::agent;
use crate::{db::image::image_get, domain::placement};

/// Pushes an image to a registry as a bundle.
pub struct Push;

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PushOrder {
    /// The image that the name meant when the order was given.
    pub image_id: ImageId,
    /// What was asked for.
    pub push: PushRequest,
}

/// What the steps found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    host: Option<HostId>,
    pushed: Option<PushedBundle>,
}

impl Kind for Push {
    const NAME: &'static str = "image.push";
    type Request = PushOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Choose), Box::new(Send)]
    }

    fn result(&self, order: &PushOrder, journal: &Journal) -> Value {
        json!({ "image_id": order.image_id, "reference": order.push.reference, "host": journal.host, "pushed": journal.pushed })
    }
}

/// How long a push waits for a host with the image to be up: as a pull does.
const PATIENCE: Duration = Duration::from_secs(15);
/// Pause between two looks at the hosts.
const PAUSE: Duration = Duration::from_millis(500);

/// Chooses the host among those that have the image. Has no effect anywhere.
struct Choose;

#[async_trait]
impl Step<Push> for Choose {
    fn name(&self) -> &'static str {
        "choose"
    }

    async fn run(&self, cx: &Context, _: &Push, order: &PushOrder, journal: &mut Journal) -> Result<(), StepError> {
        let client = cx.store().client().await?;
        let image = image_get(&client, order.image_id).await?;
        drop(client);
        let gone = || ApiError::not_found(format!("the image {} was deleted", order.push.image));
        let image = image.ok_or_else(|| StepError::permanent(gone()))?;
        let give_up = Instant::now() + PATIENCE;
        loop {
            cx.checkpoint()?;
            let hosts = cx.unless_cancelled(cx.bus().call::<host::List>(&Empty {})).await?;
            let chosen = hosts.and_then(|list| {
                let up = image.hosts.iter().find_map(|host| placement::choose(&list.hosts, Some(host)).ok());
                up.ok_or_else(|| {
                    ApiError::unavailable(format!("no host that holds the image {} is up", image.name))
                        .hint("`warren host ls` shows the hosts, `warren image show` those of an image")
                })
            });
            match chosen {
                Ok(host) => {
                    journal.host = Some(host);
                    return Ok(());
                }
                Err(error) if error.retryable && Instant::now() < give_up => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(StepError::permanent(error)),
            }
        }
    }
}

/// Has the host pack and send. What a registry was sent it keeps: blobs that no manifest names are its own to collect.
struct Send;

impl Send {
    fn host(journal: &Journal) -> Result<&HostId, StepError> {
        let missing = || ApiError::internal("the journal of this push names no host");
        journal.host.as_ref().ok_or_else(|| StepError::permanent(missing()))
    }
}

#[async_trait]
impl Step<Push> for Send {
    fn name(&self) -> &'static str {
        "push"
    }

    async fn run(&self, cx: &Context, _: &Push, order: &PushOrder, journal: &mut Journal) -> Result<(), StepError> {
        let host = Self::host(journal)?;
        let pushed = agent::push(cx, host, order.image_id, &order.push.reference).await?;
        runtime::fault::point("image.push/push/done");
        // What the host remembers of it is of no use to anybody now; a host that is away forgets it when it ends.
        if let Err(error) = agent::discard(cx, host).await {
            tracing::debug!(%error, "the host was not told that the push is over");
        }
        tracing::info!(image.id = %order.image_id, image.digest = %pushed.image, host.id = %host, "pushed");
        journal.pushed = Some(pushed);
        Ok(())
    }

    async fn undo(&self, cx: &Context, _: &Push, _: &PushOrder, journal: &Journal) -> Result<(), StepError> {
        match agent::discard(cx, Self::host(journal)?).await {
            Err(error) if error.code == ErrorCode::Aborted => Ok(()),
            ended => Ok(ended?),
        }
    }
}

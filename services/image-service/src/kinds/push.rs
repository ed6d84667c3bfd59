//! `image.push`: choose a host that has the image, and have it pack and push it.

use async_trait::async_trait;
use contract::{ErrorCode, HostId, ImageId, agent::PushedBundle, image::PushRequest};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    agent,
    holder::{Choose, Holds, chosen},
    kernel::along,
};

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

impl Holds for Push {
    fn image(order: &PushOrder) -> (ImageId, &str) {
        (order.image_id, &order.push.image)
    }

    fn chosen(journal: &mut Journal, host: HostId) {
        journal.host = Some(host);
    }

    fn host(journal: &Journal) -> Option<&HostId> {
        journal.host.as_ref()
    }
}

/// Has the host pack and send, with the kernel the image names. What a registry was sent it keeps: blobs that no manifest names are its own to collect.
struct Send;

#[async_trait]
impl Step<Push> for Send {
    fn name(&self) -> &'static str {
        "push"
    }

    async fn run(&self, cx: &Context, _: &Push, order: &PushOrder, journal: &mut Journal) -> Result<(), StepError> {
        let host = chosen::<Push>(journal)?;
        let kernel = along::brought(cx, order.image_id, host).await?;
        let pushed = agent::push(cx, host, order.image_id, kernel, &order.push.reference).await?;
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
        match agent::discard(cx, chosen::<Push>(journal)?).await {
            Err(error) if error.code == ErrorCode::Aborted => Ok(()),
            ended => Ok(ended?),
        }
    }
}

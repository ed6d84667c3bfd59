//! `image.export`: choose a host that has the image, and have it pack and send it as an archive.

use async_trait::async_trait;
use contract::{ErrorCode, HostId, ImageId, agent::PushedBundle, image::ExportRequest};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    agent,
    holder::{Choose, Holds, chosen},
    kernel::along,
};

/// Sends an image as an archive.
pub struct Export;

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExportOrder {
    /// The image that the name meant when the order was given.
    pub image_id: ImageId,
    /// What was asked for.
    pub export: ExportRequest,
}

/// What the steps found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    host: Option<HostId>,
    exported: Option<PushedBundle>,
}

impl Kind for Export {
    const NAME: &'static str = "image.export";
    type Request = ExportOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Choose), Box::new(Send)]
    }

    fn result(&self, order: &ExportOrder, journal: &Journal) -> Value {
        json!({ "image_id": order.image_id, "host": journal.host, "exported": journal.exported })
    }
}

impl Holds for Export {
    fn image(order: &ExportOrder) -> (ImageId, &str) {
        (order.image_id, &order.export.image)
    }

    fn chosen(journal: &mut Journal, host: HostId) {
        journal.host = Some(host);
    }

    fn host(journal: &Journal) -> Option<&HostId> {
        journal.host.as_ref()
    }
}

/// Has the host pack and send, with the kernel the image names. Whoever takes the archive knows by its digests whether it has it all.
struct Send;

#[async_trait]
impl Step<Export> for Send {
    fn name(&self) -> &'static str {
        "send"
    }

    async fn run(&self, cx: &Context, _: &Export, order: &ExportOrder, journal: &mut Journal) -> Result<(), StepError> {
        let host = chosen::<Export>(journal)?;
        let kernel = along::brought(cx, order.image_id, host).await?;
        let exported = agent::export(cx, host, order.image_id, kernel, &order.export).await?;
        // What the host remembers of it is of no use to anybody now; a host that is away forgets it when it ends.
        if let Err(error) = agent::discard(cx, host).await {
            tracing::debug!(%error, "the host was not told that the export is over");
        }
        tracing::info!(image.id = %order.image_id, image.digest = %exported.image, host.id = %host, "exported");
        journal.exported = Some(exported);
        Ok(())
    }

    async fn undo(&self, cx: &Context, _: &Export, _: &ExportOrder, journal: &Journal) -> Result<(), StepError> {
        match agent::discard(cx, chosen::<Export>(journal)?).await {
            Err(error) if error.code == ErrorCode::Aborted => Ok(()),
            ended => Ok(ended?),
        }
    }
}

//! `image.collect`: an image without a name goes, as by a delete, unless it got a name or a VM uses it by now. The reconciler
//! asks for it; it waits for whatever else is under way with the image.

use async_trait::async_trait;
use contract::{HostId, ImageId};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{delete::remove_files, publish::claim_lost};
use crate::db::withdrawal::{Taken, Withdrawn, image_withdraw};

/// Removes an image that nobody calls by a name.
pub struct Collect;

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CollectOrder {
    /// The image.
    pub image_id: ImageId,
}

/// What the step found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    /// Whether it went.
    deleted: bool,
    /// Hosts that could not remove the files yet; the sweeper sees to them.
    owed: Vec<HostId>,
}

impl Kind for Collect {
    const NAME: &'static str = "image.collect";
    type Request = CollectOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Withdraw)]
    }

    fn result(&self, order: &CollectOrder, journal: &Journal) -> Value {
        json!({ "image_id": order.image_id, "deleted": journal.deleted, "owed": journal.owed })
    }
}

/// Deletes the rows, and then the files: one step, as in a delete.
struct Withdraw;

#[async_trait]
impl Step<Collect> for Withdraw {
    fn name(&self) -> &'static str {
        "collect"
    }

    async fn run(
        &self,
        cx: &Context,
        _: &Collect,
        order: &CollectOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let mut client = cx.store().client().await?;
        match image_withdraw(&mut client, cx.fence(), order.image_id, Taken::Nothing).await? {
            Withdrawn::Done => journal.deleted = true,
            Withdrawn::Named | Withdrawn::InUse(_) => return Ok(()),
            Withdrawn::ClaimLost => return Err(StepError::retry(claim_lost())),
        }
        drop(client);
        runtime::fault::point("image.collect/collect/withdrawn");
        match remove_files(cx, order.image_id).await {
            Ok(owed) => journal.owed = owed,
            // What is owed stands in the database; the sweeper reads it when the database is back.
            Err(error) => tracing::warn!(image.id = %order.image_id, %error, "files are left to the sweeper"),
        }
        Ok(())
    }
}

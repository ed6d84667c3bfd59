//! `kernel.collect`: a kernel that came along with an image goes, as by a delete, unless it got a name or is used by now. The reconciler asks for it.

use async_trait::async_trait;
use contract::{HostId, KernelId};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::delete::remove_files;
use crate::{
    db::kernel::withdrawal::{Taken, Withdrawn, kernel_withdraw},
    kinds::publish::claim_lost,
};

/// Removes a kernel that nobody names and nothing uses.
pub struct KernelCollect;

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KernelCollectOrder {
    /// The kernel.
    pub kernel_id: KernelId,
}

/// What the step found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    /// Whether it went.
    deleted: bool,
    /// Hosts that could not remove the files yet; the sweeper sees to them.
    owed: Vec<HostId>,
}

impl Kind for KernelCollect {
    const NAME: &'static str = "kernel.collect";
    type Request = KernelCollectOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Withdraw)]
    }

    fn result(&self, order: &KernelCollectOrder, journal: &Journal) -> Value {
        json!({ "kernel_id": order.kernel_id, "deleted": journal.deleted, "owed": journal.owed })
    }
}

/// Deletes the rows, and then the files: one step, as in a delete.
struct Withdraw;

#[async_trait]
impl Step<KernelCollect> for Withdraw {
    fn name(&self) -> &'static str {
        "collect"
    }

    async fn run(
        &self,
        cx: &Context,
        _: &KernelCollect,
        order: &KernelCollectOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let mut client = cx.store().client().await?;
        match kernel_withdraw(&mut client, cx.fence(), order.kernel_id, Taken::Nothing).await? {
            Withdrawn::Done => journal.deleted = true,
            Withdrawn::Named | Withdrawn::InUse(_) => return Ok(()),
            Withdrawn::ClaimLost => return Err(StepError::retry(claim_lost())),
        }
        drop(client);
        runtime::fault::point("kernel.collect/collect/withdrawn");
        match remove_files(cx, order.kernel_id).await {
            Ok(owed) => journal.owed = owed,
            // What is owed stands in the database; the sweeper reads it when the database is back.
            Err(error) => tracing::warn!(kernel.id = %order.kernel_id, %error, "files are left to the sweeper"),
        }
        Ok(())
    }
}

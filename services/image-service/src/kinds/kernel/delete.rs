//! `kernel.delete`: delete the rows unless a VM or an image uses the kernel, then have its hosts remove the files.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use contract::{
    ApiError, HostId, KernelId, KernelName,
    agent::{KernelRemove, RemoveKernelRequest},
};
use futures::future::join_all;
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::StoreError;

use crate::{
    db::kernel::{
        removal::{Removal, removal_done, removal_failed, removal_list},
        usage::Users,
        withdrawal::{Taken, Withdrawn, kernel_withdraw},
    },
    kinds::{FILES_PATIENCE, publish::claim_lost},
};

/// Deletes a kernel nobody uses.
pub struct KernelDelete;

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KernelDeleteOrder {
    /// The kernel.
    pub kernel_id: KernelId,
    /// Its name when the order was given.
    pub name: Option<KernelName>,
    /// Whether only this name is taken away, and the kernel only with its last name.
    pub only_name: bool,
}

impl KernelDeleteOrder {
    /// The kernel as messages call it.
    fn shown(&self) -> String {
        self.name.as_ref().map_or_else(|| self.kernel_id.to_string(), ToString::to_string)
    }
}

/// What the step found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    /// Whether the kernel went with its name.
    deleted: bool,
    /// Hosts that could not remove the files yet; the sweeper sees to them.
    owed: Vec<HostId>,
}

impl Kind for KernelDelete {
    const NAME: &'static str = "kernel.delete";
    type Request = KernelDeleteOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Withdraw)]
    }

    fn result(&self, order: &KernelDeleteOrder, journal: &Journal) -> Value {
        json!({ "kernel_id": order.kernel_id, "name": order.name, "deleted": journal.deleted, "owed": journal.owed })
    }
}

/// Pause between two tries to have files removed.
const FILES_PAUSE: Duration = Duration::from_millis(500);

/// Deletes the rows, and then the files. One step: once the rows are gone there is no way back, so a cancel must not come between the two.
/// A repeat finds no rows and goes on with the files that are left.
struct Withdraw;

#[async_trait]
impl Step<KernelDelete> for Withdraw {
    fn name(&self) -> &'static str {
        "delete"
    }

    async fn run(
        &self,
        cx: &Context,
        _: &KernelDelete,
        order: &KernelDeleteOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let mut client = cx.store().client().await?;
        let taken = order.name.as_ref().filter(|_| order.only_name).map_or(Taken::All, Taken::Name);
        match kernel_withdraw(&mut client, cx.fence(), order.kernel_id, taken).await? {
            Withdrawn::Done => journal.deleted = true,
            Withdrawn::Named => return Ok(()),
            Withdrawn::ClaimLost => return Err(StepError::retry(claim_lost())),
            Withdrawn::InUse(users) => return Err(StepError::permanent(in_use(order, &users))),
        }
        drop(client);
        runtime::fault::point("kernel.delete/delete/withdrawn");
        match remove_files(cx, order.kernel_id).await {
            Ok(owed) => journal.owed = owed,
            // What is owed stands in the database; the sweeper reads it when the database is back.
            Err(error) => tracing::warn!(kernel.id = %order.kernel_id, %error, "files are left to the sweeper"),
        }
        Ok(())
    }
}

/// Has every host remove the files; answers with those that could not.
pub(super) async fn remove_files(cx: &Context, kernel: KernelId) -> Result<Vec<HostId>, StoreError> {
    let client = cx.store().client().await?;
    let removals = removal_list(&client, kernel).await?;
    drop(client);
    let outcomes = join_all(removals.iter().map(|removal| remove_on(cx, removal))).await;
    Ok(outcomes.into_iter().flatten().collect())
}

/// Has one host remove the files; the host, when it could not.
async fn remove_on(cx: &Context, removal: &Removal) -> Option<HostId> {
    let give_up = Instant::now() + FILES_PATIENCE;
    while let Err(error) = kernel_remove_once(cx.store(), cx.bus(), removal).await {
        if Instant::now() >= give_up {
            tracing::warn!(kernel.id = %removal.kernel, host.id = %removal.host, %error, "a host owes the removal of files");
            return Some(removal.host.clone());
        }
        tokio::time::sleep(FILES_PAUSE).await;
    }
    None
}

/// Has one host remove the files and notes that it did, or why it did not.
///
/// # Errors
/// The host could not, or the database.
pub async fn kernel_remove_once(store: &store::Store, bus: &bus::Bus, removal: &Removal) -> Result<(), ApiError> {
    let request = RemoveKernelRequest { fence: removal.fence, kernel: removal.kernel };
    let outcome = bus.command::<KernelRemove>(&removal.host, &request).await;
    let client = store.client().await?;
    match outcome {
        Ok(_) => Ok(removal_done(&client, removal).await?),
        Err(error) => {
            removal_failed(&client, removal, &error.message).await?;
            Err(error)
        }
    }
}

fn in_use(order: &KernelDeleteOrder, users: &Users) -> ApiError {
    let mut by = Vec::new();
    if !users.vms.is_empty() {
        by.push(format!("VMs: {}", users.vms.join(", ")));
    }
    if !users.images.is_empty() {
        by.push(format!("images: {}", users.images.join(", ")));
    }
    if users.default {
        by.push("the lab as its default".to_owned());
    }
    let hint = match (users.vms.first(), users.images.first()) {
        (Some(vm), _) => format!("delete what uses it first: `warren vm rm {vm}`"),
        (None, Some(image)) => format!("let images name another one first: `warren image kernel {image} NAME`"),
        (None, None) => "choose another default first: `warren kernel default NAME`, or none with --none".to_owned(),
    };
    ApiError::failed_precondition(format!("the kernel {} is used by {}", order.shown(), by.join("; by ")))
        .hint(hint)
        .details(json!({ "vms": users.vms, "images": users.images, "default": users.default }))
}

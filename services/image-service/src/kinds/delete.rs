//! `image.delete`: delete the rows unless a VM uses the image, then have its hosts remove the files.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use contract::{
    ApiError, HostId, ImageId, ImageName,
    agent::{ImageRemove, RemoveImageRequest},
};
use futures::future::join_all;
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::StoreError;

use super::publish::claim_lost;
use crate::db::{
    image::image_get,
    removal::{Removal, removal_done, removal_failed, removal_list},
    usage::Users,
    withdrawal::{Taken, Withdrawn, image_withdraw},
};

/// Deletes an image no VM uses.
pub struct Delete;

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeleteOrder {
    /// The image.
    pub image_id: ImageId,
    /// Its name when the order was given.
    pub name: Option<ImageName>,
    /// Whether only this name is taken away, and the image only with its last name.
    #[serde(default)]
    pub only_name: bool,
}

impl DeleteOrder {
    /// The image as messages call it.
    fn shown(&self) -> String {
        self.name.as_ref().map_or_else(|| self.image_id.to_string(), ToString::to_string)
    }
}

/// What the step found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    /// Whether the image went with its name.
    #[serde(default)]
    deleted: bool,
    /// The names it has still, where it did not.
    #[serde(default)]
    names: Vec<ImageName>,
    /// Hosts that could not remove the files yet; the sweeper sees to them.
    owed: Vec<HostId>,
}

impl Kind for Delete {
    const NAME: &'static str = "image.delete";
    type Request = DeleteOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Withdraw)]
    }

    fn result(&self, order: &DeleteOrder, journal: &Journal) -> Value {
        json!({ "image_id": order.image_id, "name": order.name, "deleted": journal.deleted, "names": journal.names, "owed": journal.owed })
    }
}

/// How long a delete waits for its hosts before their files are owed: longer than an agent's restart takes.
pub const FILES_PATIENCE: Duration = Duration::from_secs(20);
/// Pause between two tries.
const FILES_PAUSE: Duration = Duration::from_millis(500);

/// Deletes the rows, and then the files. One step: once the rows are gone there is no way back, so a cancel must not come
/// between the two. A repeat finds no rows and goes on with the files that are left.
struct Withdraw;

#[async_trait]
impl Step<Delete> for Withdraw {
    fn name(&self) -> &'static str {
        "delete"
    }

    async fn run(&self, cx: &Context, _: &Delete, order: &DeleteOrder, journal: &mut Journal) -> Result<(), StepError> {
        let mut client = cx.store().client().await?;
        let taken = order.name.as_ref().filter(|_| order.only_name).map_or(Taken::All, Taken::Name);
        match image_withdraw(&mut client, cx.fence(), order.image_id, taken).await? {
            Withdrawn::Done => journal.deleted = true,
            Withdrawn::Named => {
                journal.names = image_get(&client, order.image_id).await?.map(|image| image.names).unwrap_or_default();
                return Ok(());
            }
            Withdrawn::ClaimLost => return Err(StepError::retry(claim_lost())),
            Withdrawn::InUse(users) => return Err(StepError::permanent(in_use(order, &users))),
        }
        drop(client);
        runtime::fault::point("image.delete/delete/withdrawn");
        match remove_files(cx, order.image_id).await {
            Ok(owed) => journal.owed = owed,
            // What is owed stands in the database; the sweeper reads it when the database is back.
            Err(error) => tracing::warn!(image.id = %order.image_id, %error, "files are left to the sweeper"),
        }
        Ok(())
    }
}

/// Has every host remove the files; answers with those that could not.
pub(super) async fn remove_files(cx: &Context, image: ImageId) -> Result<Vec<HostId>, StoreError> {
    let client = cx.store().client().await?;
    let removals = removal_list(&client, image).await?;
    drop(client);
    let outcomes = join_all(removals.iter().map(|removal| remove_on(cx, removal))).await;
    Ok(outcomes.into_iter().flatten().collect())
}

/// Has one host remove the files; the host, when it could not.
async fn remove_on(cx: &Context, removal: &Removal) -> Option<HostId> {
    let give_up = Instant::now() + FILES_PATIENCE;
    loop {
        let failure = match remove_once(cx.store(), cx.bus(), removal).await {
            Ok(()) => return None,
            Err(failure) => failure,
        };
        if Instant::now() >= give_up {
            tracing::warn!(image.id = %removal.image, host.id = %removal.host, error = %failure, "a host owes the removal of files");
            return Some(removal.host.clone());
        }
        tokio::time::sleep(FILES_PAUSE).await;
    }
}

/// Has one host remove the files and notes that it did, or why it did not.
///
/// # Errors
/// The host could not, or the database.
pub async fn remove_once(store: &store::Store, bus: &bus::Bus, removal: &Removal) -> Result<(), ApiError> {
    let request = RemoveImageRequest { fence: removal.fence, image: removal.image };
    let outcome = bus.command::<ImageRemove>(&removal.host, &request).await;
    let client = store.client().await?;
    match outcome {
        Ok(_) => Ok(removal_done(&client, removal).await?),
        Err(error) => {
            removal_failed(&client, removal, &error.message).await?;
            Err(error)
        }
    }
}

fn in_use(order: &DeleteOrder, users: &Users) -> ApiError {
    let names = users.names.join(", ");
    let by = match users.count {
        1 => format!("VM {names}"),
        count if count as usize > users.names.len() => format!("{count} VMs: {names}, …"),
        count => format!("{count} VMs: {names}"),
    };
    let first = users.names.first().map_or("<name>", String::as_str);
    ApiError::failed_precondition(format!("the image {} is used by {by}", order.shown()))
        .hint(format!("delete what uses it first: `warren vm rm {first}`"))
        .details(json!({ "vms": users.names, "count": users.count }))
}

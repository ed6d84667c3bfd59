//! The **sweeper** has hosts that were away remove the files of images and kernels deleted meanwhile. It takes no input: what is owed
//! stands in `image.removal` and `image.kernel_removal`.

use std::time::Duration;

use bus::Bus;
use store::{Store, StoreError};

use crate::{
    db::{
        kernel::removal::removal_take as kernel_removal_take,
        removal::{Removal, removal_take},
    },
    kinds,
};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(2);

/// How long a removal rests after a try: a host that comes back is cleaned within this.
const PAUSE: Duration = Duration::from_secs(10);

/// Sweeps for ever.
pub async fn run(store: Store, bus: Bus) {
    loop {
        match take(&store).await {
            Ok(Some(removal)) => {
                match kinds::remove_once(&store, &bus, &removal).await {
                    Ok(()) => {
                        tracing::info!(image.id = %removal.image, host.id = %removal.host, "owed files are removed")
                    }
                    Err(error) => {
                        tracing::info!(image.id = %removal.image, host.id = %removal.host, %error, "files are still owed");
                    }
                }
                continue;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "owed files cannot be looked for now"),
        }
        match kernel(&store, &bus).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "owed files of kernels cannot be looked for now"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Has one host remove one kernel's files, if that is owed; whether it was.
async fn kernel(store: &Store, bus: &Bus) -> Result<bool, StoreError> {
    let client = store.client().await?;
    let Some(removal) = kernel_removal_take(&client, PAUSE).await? else { return Ok(false) };
    drop(client);
    let outcome = kinds::kernel_remove_once(store, bus, &removal).await;
    tracing::info!(kernel.id = %removal.kernel, host.id = %removal.host, ?outcome, "owed files of a kernel were looked after");
    Ok(true)
}

async fn take(store: &Store) -> Result<Option<Removal>, StoreError> {
    let client = store.client().await?;
    removal_take(&client, PAUSE).await
}

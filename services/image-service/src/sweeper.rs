//! The **sweeper** has hosts that were away remove the files of images deleted meanwhile. It takes no input: what is owed
//! stands in `image.removal`.

use std::time::Duration;

use bus::Bus;
use store::{Store, StoreError};

use crate::{
    db::removal::{Removal, removal_take},
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
        tokio::time::sleep(EVERY).await;
    }
}

async fn take(store: &Store) -> Result<Option<Removal>, StoreError> {
    let client = store.client().await?;
    removal_take(&client, PAUSE).await
}

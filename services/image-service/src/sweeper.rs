//! The **sweeper** has hosts that were away remove the files of images and kernels deleted meanwhile. It takes no input: what is owed
//! stands in `image.removal` and `image.kernel_removal`. Hosts are asked side by side, and both sorts are looked after each for itself,
//! so that a host that hangs holds up nothing but what it owes.

use std::time::Duration;

use async_trait::async_trait;
use bus::Bus;
use contract::{ApiError, HostId, deadline};
use futures::{StreamExt, stream::FuturesUnordered};
use store::{Client, Store, StoreError};

use crate::{
    db::{
        kernel::removal::{Removal as KernelRemoval, removal_take as kernel_removal_take},
        removal::{Removal, removal_take},
    },
    kinds,
};

/// How often it looks.
const EVERY: Duration = Duration::from_secs(2);

/// How long a removal that was taken is nobody else's: longer than a host has for its answer.
const HOLD: Duration = deadline::AGENT.saturating_add(Duration::from_secs(10));

/// How many hosts are asked at once for each sort: so many may hang before others wait for them.
const HOSTS: usize = 16;

/// Something that a host is to remove.
#[async_trait]
trait Owed: Sized + Send + Sync {
    /// Takes the one whose turn it is, of none of the busy hosts.
    async fn take(client: &Client, busy: &[HostId]) -> Result<Option<Self>, StoreError>;

    /// By whom.
    fn host(&self) -> &HostId;

    /// As the log has it.
    fn shown(&self) -> String;

    /// Has the host remove it, once.
    async fn remove(&self, store: &Store, bus: &Bus) -> Result<(), ApiError>;
}

#[async_trait]
impl Owed for Removal {
    async fn take(client: &Client, busy: &[HostId]) -> Result<Option<Self>, StoreError> {
        removal_take(client, HOLD, busy).await
    }

    fn host(&self) -> &HostId {
        &self.host
    }

    fn shown(&self) -> String {
        format!("image {}", self.image)
    }

    async fn remove(&self, store: &Store, bus: &Bus) -> Result<(), ApiError> {
        kinds::remove_once(store, bus, self).await
    }
}

#[async_trait]
impl Owed for KernelRemoval {
    async fn take(client: &Client, busy: &[HostId]) -> Result<Option<Self>, StoreError> {
        kernel_removal_take(client, HOLD, busy).await
    }

    fn host(&self) -> &HostId {
        &self.host
    }

    fn shown(&self) -> String {
        format!("kernel {}", self.kernel)
    }

    async fn remove(&self, store: &Store, bus: &Bus) -> Result<(), ApiError> {
        kinds::kernel_remove_once(store, bus, self).await
    }
}

/// Sweeps for ever.
pub async fn run(store: Store, bus: Bus) {
    tokio::join!(sweep::<Removal>(&store, &bus), sweep::<KernelRemoval>(&store, &bus));
}

/// Sweeps what there is of one sort.
async fn sweep<O: Owed>(store: &Store, bus: &Bus) {
    let mut tries = FuturesUnordered::new();
    let mut busy: Vec<HostId> = Vec::new();
    loop {
        while busy.len() < HOSTS {
            match take::<O>(store, &busy).await {
                Ok(Some(removal)) => {
                    busy.push(removal.host().clone());
                    tries.push(attempt(store, bus, removal));
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "owed files cannot be looked for now");
                    break;
                }
            }
        }
        tokio::select! {
            Some(host) = tries.next() => busy.retain(|other| *other != host),
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// Has one host remove something; the host.
async fn attempt<O: Owed>(store: &Store, bus: &Bus, removal: O) -> HostId {
    let (host, what) = (removal.host().clone(), removal.shown());
    match removal.remove(store, bus).await {
        Ok(()) => tracing::info!(what, host.id = %host, "owed files are removed"),
        Err(error) => tracing::info!(what, host.id = %host, %error, "files are still owed"),
    }
    host
}

async fn take<O: Owed>(store: &Store, busy: &[HostId]) -> Result<Option<O>, StoreError> {
    let client = store.client().await?;
    O::take(&client, busy).await
}

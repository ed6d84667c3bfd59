//! The **placement** step of every kind that makes an image on a host it chooses.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use contract::{
    HostId,
    host::{self, Empty},
};
use operations::{Context, Kind, Step, StepError};

use crate::domain::placement;

/// How long it waits for a host to be up: longer than it takes until hosts are heard of after vm-lifecycle or
/// NATS was away.
const PATIENCE: Duration = Duration::from_secs(15);
/// Pause between two looks at the hosts.
const PAUSE: Duration = Duration::from_millis(500);

/// A kind of operation that makes an image on the host that was asked for, or on the live one with most free disk space.
pub trait Placed: Kind {
    /// The host that was asked for.
    fn wanted(request: &Self::Request) -> Option<&HostId>;

    /// Takes down which it is.
    fn placed(journal: &mut Self::Journal, host: HostId);
}

/// Chooses the host. Has no effect anywhere.
pub struct Place;

#[async_trait]
impl<K: Placed> Step<K> for Place {
    fn name(&self) -> &'static str {
        "place"
    }

    async fn run(&self, cx: &Context, _: &K, request: &K::Request, journal: &mut K::Journal) -> Result<(), StepError> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            cx.checkpoint()?;
            let hosts = cx.unless_cancelled(cx.bus().call::<host::List>(&Empty {})).await?;
            match hosts.and_then(|list| placement::choose(&list.hosts, K::wanted(request))) {
                Ok(host) => {
                    K::placed(journal, host);
                    return Ok(());
                }
                Err(error) if error.retryable && Instant::now() < give_up => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(StepError::permanent(error)),
            }
        }
    }
}

/// Another host for what these had no room for; none when all that are up have been asked.
///
/// # Errors
/// The operation was cancelled, or the hosts are not known now.
pub async fn another(cx: &Context, full: &[HostId]) -> Result<Option<HostId>, StepError> {
    let mut hosts = cx.unless_cancelled(cx.bus().call::<host::List>(&Empty {})).await??.hosts;
    hosts.retain(|host| !full.contains(&host.id));
    Ok(placement::choose(&hosts, None).ok())
}

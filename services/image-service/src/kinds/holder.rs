//! The **choice of a holder**: the first step of every kind that sends an image from a host that has it.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use contract::{
    ApiError, HostId, ImageId,
    host::{self, Empty},
};
use operations::{Context, Kind, Step, StepError};

use crate::{db::image::image_get, domain::placement};

/// How long it waits for a host with the image to be up: as a pull does.
const PATIENCE: Duration = Duration::from_secs(15);
/// Pause between two looks at the hosts.
const PAUSE: Duration = Duration::from_millis(500);

/// A kind of operation that sends an image.
pub trait Holds: Kind {
    /// The image, and what the request calls it.
    fn image(request: &Self::Request) -> (ImageId, &str);

    /// Takes down the host that sends it.
    fn chosen(journal: &mut Self::Journal, host: HostId);

    /// That host, once it was chosen.
    fn host(journal: &Self::Journal) -> Option<&HostId>;
}

/// The host in the journal of a kind that sends an image.
///
/// # Errors
/// There is none, which the order of steps excludes.
pub fn chosen<K: Holds>(journal: &K::Journal) -> Result<&HostId, StepError> {
    K::host(journal).ok_or_else(|| {
        StepError::permanent(ApiError::internal(format!("the journal of this {} names no host", K::NAME)))
    })
}

/// Chooses the host among those that have the image. Has no effect anywhere.
pub struct Choose;

#[async_trait]
impl<K: Holds> Step<K> for Choose {
    fn name(&self) -> &'static str {
        "choose"
    }

    async fn run(&self, cx: &Context, _: &K, request: &K::Request, journal: &mut K::Journal) -> Result<(), StepError> {
        let (id, called) = K::image(request);
        let client = cx.store().client().await?;
        let image = image_get(&client, id).await?;
        drop(client);
        let gone = || ApiError::not_found(format!("the image {called} was deleted"));
        let image = image.ok_or_else(|| StepError::permanent(gone()))?;
        let give_up = Instant::now() + PATIENCE;
        loop {
            cx.checkpoint()?;
            let hosts = cx.unless_cancelled(cx.bus().call::<host::List>(&Empty {})).await?;
            let chosen = hosts.and_then(|list| {
                let up = image.hosts.iter().find_map(|host| placement::choose(&list.hosts, Some(host)).ok());
                up.ok_or_else(|| {
                    ApiError::unavailable(format!("no host that holds the image {} is up", image.name))
                        .hint("`warren host ls` shows the hosts, `warren image show` those of an image")
                })
            });
            match chosen {
                Ok(host) => {
                    K::chosen(journal, host);
                    return Ok(());
                }
                Err(error) if error.retryable && Instant::now() < give_up => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(StepError::permanent(error)),
            }
        }
    }
}

//! The **publication** step of every kind that makes an image: name locked → looked at again → files renamed → rows
//! inserted → committed.
//!
//! A kind says of itself what it makes and where ([`Makes`]); [`Publish`] is the last of its steps.

use async_trait::async_trait;
use contract::{ApiError, HostId, ImageId, ImageName, image::Image};
use operations::{Context, Kind, Step, StepError};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{agent, name_taken};
use crate::db::{
    publication::{Withdrawn, image_withdraw, name_hold},
    removal::{removal_done, removal_list},
};

/// The **turns** of publications in this process. Each publication keeps a database connection while it waits for its
/// name or its host, and leases must be renewed and requests answered meanwhile. All kinds share them.
pub struct Turns(Semaphore);

impl Turns {
    /// At most this many at once.
    pub fn new(publications: usize) -> Self {
        Self(Semaphore::new(publications.max(1)))
    }

    async fn take(&self) -> Result<SemaphorePermit<'_>, StepError> {
        let turn = self.0.acquire().await;
        turn.map_err(|_| StepError::retry(ApiError::unavailable("this worker publishes nothing any more")))
    }
}

/// The image an operation is to make, as its request has it.
pub struct Made<'a> {
    /// Minted with the operation.
    pub id: ImageId,
    /// The name it gets.
    pub name: &'a ImageName,
    /// What is shown as its source.
    pub source: String,
}

/// A kind of operation that makes an image: an earlier step of it has a host stage the image under the operation's id.
pub trait Makes: Kind {
    /// The turns of publications.
    fn turns(&self) -> &Turns;

    /// What the request asks to be made.
    fn made(request: &Self::Request) -> Made<'_>;

    /// The host that staged it, once one was chosen.
    fn host(journal: &Self::Journal) -> Option<&HostId>;

    /// Takes down what was published.
    fn published(journal: &mut Self::Journal, image: Image);
}

/// The host in the journal of a kind that makes an image.
///
/// # Errors
/// There is none, which the order of steps excludes.
pub fn host_of<K: Makes>(journal: &K::Journal) -> Result<&HostId, StepError> {
    K::host(journal).ok_or_else(|| {
        StepError::permanent(ApiError::internal(format!("the journal of this {} names no host", K::NAME)))
    })
}

/// The publication atom.
///
/// A repeat finds its own image published, or does it all again: the rename of what is renamed already is nothing.
pub struct Publish;

#[async_trait]
impl<K: Makes> Step<K> for Publish {
    fn name(&self) -> &'static str {
        "publish"
    }

    async fn run(
        &self,
        cx: &Context,
        kind: &K,
        request: &K::Request,
        journal: &mut K::Journal,
    ) -> Result<(), StepError> {
        let Made { id, name, source } = K::made(request);
        let host = host_of::<K>(journal)?;
        let _turn = kind.turns().take().await?;
        let mut client = cx.store().client().await?;
        let held = name_hold(&mut client, name, id).await?;
        let image = match held.holder {
            Some(holder) if holder == id => held.published(id).await?,
            Some(_) => return Err(StepError::permanent(name_taken(name, None))),
            None => {
                let staged = agent::publish(cx, host, id).await?;
                runtime::fault::point(&format!("{}/publish/renamed", K::NAME));
                held.publish(cx.fence(), id, &source, &staged, host).await?
            }
        };
        let image = image.ok_or_else(|| StepError::retry(claim_lost()))?;
        tracing::info!(image.id = %id, image.name = %name, image.digest = %image.digest, host.id = %host, "published");
        K::published(journal, image);
        Ok(())
    }

    /// Rows first, if they were committed; then the files. The staging goes before the final directory, so that a
    /// rename that arrives late finds nothing to rename.
    async fn undo(&self, cx: &Context, _: &K, request: &K::Request, journal: &K::Journal) -> Result<(), StepError> {
        let (id, host) = (K::made(request).id, host_of::<K>(journal)?);
        let mut client = cx.store().client().await?;
        match image_withdraw(&mut client, cx.fence(), id).await? {
            Withdrawn::Done => {}
            Withdrawn::ClaimLost => return Err(StepError::retry(claim_lost())),
            Withdrawn::InUse(users) => {
                tracing::warn!(image.id = %id, users = users.count, "the image stays: VMs use it already");
                return Ok(());
            }
        }
        drop(client);
        agent::discard(cx, host).await?;
        agent::remove(cx, host, id).await?;
        let client = cx.store().client().await?;
        for removal in removal_list(&client, id).await?.iter().filter(|removal| removal.host == *host) {
            removal_done(&client, removal).await?;
        }
        Ok(())
    }
}

/// What a worker is told whose lease ran out; nobody else ever reads it.
pub fn claim_lost() -> ApiError {
    ApiError::aborted("another worker has the operation")
}

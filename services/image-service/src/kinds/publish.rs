//! The **publication** step of every kind that makes an image: name locked → looked at again → digest looked for → files
//! renamed → rows inserted → committed. A digest that is there already is the image that is there: it gets the name, and a
//! replica on the host that staged it, if that has none.
//!
//! A kind says of itself what it makes and where ([`Makes`]); [`Publish`] is the last of its steps.

use async_trait::async_trait;
use contract::{ApiError, HostId, ImageId, ImageName, KernelId, agent::StagedImage, image::Image};
use operations::{Context, Kind, Step, StepError};
use serde_json::json;
use store::StoreError;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{agent, kernel::along, name_taken};
use crate::db::{
    image::IMAGE_KERNEL,
    name::{Held, name_hold},
    publication::Holding,
    removal::{removal_done, removal_list},
    usage::Users,
    withdrawal::{Taken, Withdrawn, image_withdraw},
};

/// The **turns** of publications in this process. Each publication keeps a database connection while it waits for its
/// name or its host, and leases must be renewed and requests answered meanwhile. All kinds share them.
pub struct Turns(Semaphore);

impl Turns {
    /// At most this many at once.
    pub fn new(publications: usize) -> Self {
        Self(Semaphore::new(publications.max(1)))
    }

    pub(super) async fn take(&self) -> Result<SemaphorePermit<'_>, StepError> {
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
    /// Whether the name is taken from the image that has it.
    pub replace: bool,
    /// Whether the name stays where an operation that began later moved it.
    pub yields: bool,
    /// The kernel it is to name.
    pub kernel: Naming,
}

/// The **kernel** an image is to name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// What came along with it, if anything did.
    Untold,
    /// This one or none; refused where the image was here already and names another.
    Asked(Option<KernelId>),
    /// That of what the image was made of, unless the image was here already or the kernel is gone by now.
    Inherited(KernelId),
}

/// A kind of operation that makes an image: an earlier step of it has a host stage the image under the operation's id.
pub trait Makes: Kind {
    /// The turns of publications.
    fn turns(&self) -> &Turns;

    /// What the request asks to be made.
    fn made(request: &Self::Request) -> Made<'_>;

    /// The host that staged it, once one was chosen.
    fn host(journal: &Self::Journal) -> Option<&HostId>;

    /// What that host staged, once it has.
    fn staged(journal: &Self::Journal) -> Option<&StagedImage>;

    /// The kernel that what the image was made of boots.
    fn inherits(_: &Self::Journal) -> Option<KernelId> {
        None
    }

    /// Whether a kernel may have come along, which an undo then takes back.
    fn brings_kernel(journal: &Self::Journal) -> bool {
        Self::staged(journal).is_some_and(|staged| staged.kernel.is_some())
    }

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
        let (mut made, host) = (K::made(request), host_of::<K>(journal)?);
        if let (Naming::Untold, Some(kernel)) = (made.kernel, K::inherits(journal)) {
            made.kernel = Naming::Inherited(kernel);
        }
        let staged = K::staged(journal)
            .ok_or_else(|| StepError::permanent(ApiError::internal(format!("this {} has staged nothing", K::NAME))))?;
        let image = {
            let _turn = kind.turns().take().await?;
            publish::<K>(cx, &made, host, staged).await?
        };
        // Not needed where the files were there already. What cannot be removed now the reconciler finds.
        if let Err(error) = agent::discard(cx, host).await {
            tracing::warn!(host.id = %host, %error, "a staging is left");
        }
        tracing::info!(image.id = %image.id, image.name = %made.name, image.digest = %image.digest, host.id = %host, "published");
        K::published(journal, image);
        Ok(())
    }

    /// Rows first, if they were committed; then the files. The staging goes before the final directory, so that a
    /// rename that arrives late finds nothing to rename.
    async fn undo(&self, cx: &Context, _: &K, request: &K::Request, journal: &K::Journal) -> Result<(), StepError> {
        let made = K::made(request);
        let host = host_of::<K>(journal)?;
        take_back(cx, host, made.id, made.name).await?;
        if K::brings_kernel(journal) { along::take_back(cx, host, made.id).await } else { Ok(()) }
    }
}

/// Takes back an image that this operation published and what it made of a name: rows first, if they were committed; then the
/// files, unless VMs use it or others gave it a name.
///
/// # Errors
/// The database or the host could not.
pub async fn take_back(cx: &Context, host: &HostId, id: ImageId, name: &ImageName) -> Result<(), StepError> {
    let mut client = cx.store().client().await?;
    match image_withdraw(&mut client, cx.fence(), id, Taken::Made(name)).await? {
        Withdrawn::Done => {}
        Withdrawn::Named => {
            drop(client);
            return Ok(agent::discard(cx, host).await?);
        }
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

/// Holds the name, brings the files to their place unless the host has the same digest already, and commits.
async fn publish<K: Makes>(
    cx: &Context,
    made: &Made<'_>,
    host: &HostId,
    staged: &StagedImage,
) -> Result<Image, StepError> {
    let mut client = cx.store().client().await?;
    let held = name_hold(&mut client, made.name, made.id, cx.fence()).await?;
    if let Some(image) = mine(&held, made, cx) {
        return held.published(image).await?.ok_or_else(|| StepError::retry(claim_lost()));
    }
    if let Some(later) = moved_later(&held, made, &staged.digest, cx).await? {
        return held.published(later).await?.ok_or_else(|| StepError::retry(claim_lost()));
    }
    check_holder(&held, made, &staged.digest).await?;
    let image = held.image(made.id, &made.source, staged).await?;
    match made.kernel {
        Naming::Asked(kernel) if image != made.id && held.boots_now(image).await? != kernel => {
            return Err(StepError::permanent(other_kernel(&staged.digest)));
        }
        Naming::Asked(kernel) => held.boots(image, kernel).await.map_err(no_kernel)?,
        Naming::Inherited(kernel) if image == made.id => held.boots_if_there(image, kernel).await?,
        Naming::Inherited(_) | Naming::Untold => {}
    }
    settle::<K>(cx, &held, image, &staged.digest, host).await?;
    // An image that was here goes on naming the kernel it names, or none.
    if let Some(kernel) = staged.kernel.as_ref().filter(|_| image == made.id) {
        along::publish::<K>(cx, &held, made, host, kernel).await?;
    }
    held.point(image, Some(&made.source), "published").await?.ok_or_else(|| StepError::retry(claim_lost()))
}

/// Brings the files to their place on the host, unless it has the image already, and takes that down.
///
/// # Errors
/// VMs there build on files that are gone, or the host or the database could not.
pub async fn settle<K: Kind>(
    cx: &Context,
    held: &Held<'_>,
    image: ImageId,
    digest: &str,
    host: &HostId,
) -> Result<(), StepError> {
    match held.replica(image, host).await? {
        Holding::Whole => Ok(()),
        Holding::Lost(users) => Err(StepError::permanent(lost(digest, host, &users))),
        Holding::Absent | Holding::Missing => {
            agent::publish(cx, host, image).await?;
            runtime::fault::point(&format!("{}/publish/renamed", K::NAME));
            Ok(held.replicate(image, host).await?)
        }
    }
}

/// A kernel may be deleted while an image that is to name it is made.
fn no_kernel(error: StoreError) -> StepError {
    match error {
        StoreError::Constraint { name, .. } if name == IMAGE_KERNEL => StepError::permanent(
            ApiError::not_found("the kernel that the image was to name is there no more")
                .hint("`warren kernel ls` shows which are there"),
        ),
        error => error.into(),
    }
}

/// What is told who wants an image to name a kernel while that image is here, perhaps with VMs, and names another or none.
fn other_kernel(digest: &str) -> ApiError {
    let short: String = digest.trim_start_matches("sha256:").chars().take(12).collect();
    ApiError::failed_precondition(format!("the image {digest} is here already, and names another kernel or none")).hint(
        format!("`warren image kernel {short} KERNEL` changes it for all its names; then do this without a kernel"),
    )
}

/// The image an earlier try of this operation published under the name.
fn mine(held: &Held<'_>, made: &Made<'_>, cx: &Context) -> Option<ImageId> {
    let holder = held.holder?;
    (holder.set_by == Some(cx.operation()) || holder.image == made.id).then_some(holder.image)
}

/// The image of another digest that an operation which began later made the name mean, where this one then has nothing to say: what
/// a name means was asked of the source since both began.
async fn moved_later(
    held: &Held<'_>,
    made: &Made<'_>,
    digest: &str,
    cx: &Context,
) -> Result<Option<ImageId>, StepError> {
    // Ids of operations are in the order they were accepted in (RFC 9562, UUIDv7).
    let later = held.holder.filter(|holder| made.replace && made.yields && holder.set_by > Some(cx.operation()));
    match later {
        Some(holder) if held.digest(holder.image).await?.as_deref() != Some(digest) => Ok(Some(holder.image)),
        _ => Ok(None),
    }
}

/// Refuses a name that means another digest, unless it is to be taken.
async fn check_holder(held: &Held<'_>, made: &Made<'_>, digest: &str) -> Result<(), StepError> {
    match held.holder {
        Some(holder) if !made.replace && held.digest(holder.image).await?.as_deref() != Some(digest) => {
            let option = if made.yields { "--if-newer" } else { "--replace" };
            Err(StepError::permanent(name_taken(made.name, None, Some(option))))
        }
        _ => Ok(()),
    }
}

/// Makes the name mean an image that is there already, files and all; nothing when it is there no more.
///
/// # Errors
/// The name means another image and is not to be taken, or the database could not.
pub async fn attach(
    cx: &Context,
    turns: &Turns,
    made: &Made<'_>,
    image: ImageId,
    host: Option<&HostId>,
) -> Result<Option<Image>, StepError> {
    let _turn = turns.take().await?;
    let mut client = cx.store().client().await?;
    let held = name_hold(&mut client, made.name, image, cx.fence()).await?;
    if let Some(image) = mine(&held, made, cx) {
        return Ok(held.published(image).await?);
    }
    if !held.keep(image).await? {
        return Ok(None);
    }
    let here = match host {
        Some(host) => held.replica(image, host).await? == Holding::Whole,
        None => held.anywhere(image).await?,
    };
    if !here {
        return Ok(None);
    }
    let digest = held.digest(image).await?.unwrap_or_default();
    if let Some(later) = moved_later(&held, made, &digest, cx).await? {
        return Ok(held.published(later).await?);
    }
    check_holder(&held, made, &digest).await?;
    let image = held.point(image, Some(&made.source), "published").await?;
    image.map(Some).ok_or_else(|| StepError::retry(claim_lost()))
}

/// What a pull is told whose host has VMs that build on files that are gone.
fn lost(digest: &str, host: &HostId, users: &Users) -> ApiError {
    ApiError::failed_precondition(format!(
        "{host} has lost its files of the image {digest}, and the disks of its VMs build on them: {}",
        users.names.join(", ")
    ))
    .hint("bring the directory back from a backup, delete these VMs, or pull to another host with `--host`")
    .details(json!({ "vms": users.names, "count": users.count }))
}

/// What a worker is told whose lease ran out; nobody else ever reads it.
pub fn claim_lost() -> ApiError {
    ApiError::aborted("another worker has the operation")
}

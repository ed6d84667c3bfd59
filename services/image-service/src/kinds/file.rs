//! `image.register` and `image.import`: choose a host, have it make an image of a file that somebody has, publish it.

use std::{marker::PhantomData, sync::Arc};

use async_trait::async_trait;
use contract::{
    HostId, ImageId, KernelId,
    agent::{StageSource, StagedImage},
    image::{Image, ImportRequest, RegisterRequest},
};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{
    agent,
    place::{Place, Placed},
    publish::{Made, Makes, Naming, Publish, Turns, host_of},
};

/// What is asked for: which file becomes which image.
pub trait Order: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The kind's name.
    const KIND: &'static str;

    /// The image that is to be made.
    fn made(&self) -> Made<'_>;

    /// The host that was asked for.
    fn wanted(&self) -> Option<&HostId>;

    /// What the host is told to make it of.
    fn source(&self) -> StageSource;
}

/// Makes an image of a file.
pub struct FromFile<O> {
    turns: Arc<Turns>,
    order: PhantomData<fn() -> O>,
}

/// Makes an image of a root filesystem in a file or a directory.
pub type Register = FromFile<RegisterOrder>;
/// Makes an image of an archive.
pub type FromArchive = FromFile<ArchiveOrder>;

impl<O> FromFile<O> {
    /// With the turns of all publications.
    pub fn new(turns: Arc<Turns>) -> Self {
        Self { turns, order: PhantomData }
    }
}

/// The stored request of a registration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RegisterOrder {
    /// The image it makes, minted with the operation.
    pub image_id: ImageId,
    /// What was asked for.
    pub register: RegisterRequest,
    /// The kernel it is to name, which was there when this was asked for.
    #[serde(default)]
    pub kernel: Option<KernelId>,
}

impl Order for RegisterOrder {
    const KIND: &'static str = "image.register";

    fn made(&self) -> Made<'_> {
        let RegisterRequest { name, source, replace, .. } = &self.register;
        let kernel = self.kernel.map_or(Naming::Untold, |kernel| Naming::Asked(Some(kernel)));
        Made { id: self.image_id, name, source: source.to_string(), replace: *replace, yields: false, kernel }
    }

    fn wanted(&self) -> Option<&HostId> {
        self.register.host.as_ref()
    }

    fn source(&self) -> StageSource {
        StageSource::File { from: self.register.source.clone(), config: self.register.config.clone() }
    }
}

/// The stored request of an import.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArchiveOrder {
    /// The image it makes, minted with the operation.
    pub image_id: ImageId,
    /// What was asked for.
    pub import: ImportRequest,
}

impl Order for ArchiveOrder {
    const KIND: &'static str = "image.import";

    fn made(&self) -> Made<'_> {
        let ImportRequest { name, source, replace, .. } = &self.import;
        Made {
            id: self.image_id,
            name,
            source: source.to_string(),
            replace: *replace,
            yields: false,
            kernel: Naming::Untold,
        }
    }

    fn wanted(&self) -> Option<&HostId> {
        self.import.host.as_ref()
    }

    fn source(&self) -> StageSource {
        StageSource::Archive { from: self.import.source.clone() }
    }
}

/// What the steps found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    host: Option<HostId>,
    staged: Option<StagedImage>,
    image: Option<Image>,
}

impl<O: Order> Kind for FromFile<O> {
    const NAME: &'static str = O::KIND;
    type Request = O;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Place), Box::new(Stage), Box::new(Publish)]
    }

    fn result(&self, _: &O, journal: &Journal) -> Value {
        json!(journal.image)
    }
}

impl<O: Order> Placed for FromFile<O> {
    fn wanted(order: &O) -> Option<&HostId> {
        order.wanted()
    }

    fn placed(journal: &mut Journal, host: HostId) {
        journal.host = Some(host);
    }
}

impl<O: Order> Makes for FromFile<O> {
    fn turns(&self) -> &Turns {
        &self.turns
    }

    fn made(order: &O) -> Made<'_> {
        order.made()
    }

    fn host(journal: &Journal) -> Option<&HostId> {
        journal.host.as_ref()
    }

    fn staged(journal: &Journal) -> Option<&StagedImage> {
        journal.staged.as_ref()
    }

    fn published(journal: &mut Journal, image: Image) {
        journal.image = Some(image);
    }
}

/// Has the host take the file, look at it and make the image: slow, and nothing is locked. A worker that adopts this joins what its host
/// does; a host-agent that was started anew has what came of an upload.
struct Stage;

#[async_trait]
impl<O: Order> Step<FromFile<O>> for Stage {
    fn name(&self) -> &'static str {
        "stage"
    }

    async fn run(&self, cx: &Context, _: &FromFile<O>, order: &O, journal: &mut Journal) -> Result<(), StepError> {
        journal.staged = Some(agent::stage(cx, host_of::<FromFile<O>>(journal)?, order.source()).await?);
        Ok(())
    }

    async fn undo(&self, cx: &Context, _: &FromFile<O>, _: &O, journal: &Journal) -> Result<(), StepError> {
        Ok(agent::discard(cx, host_of::<FromFile<O>>(journal)?).await?)
    }
}

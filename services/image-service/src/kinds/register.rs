//! `image.register`: choose a host, have it make an image of a root filesystem that somebody has, publish it.

use std::sync::Arc;

use async_trait::async_trait;
use contract::{
    HostId, ImageId,
    agent::{StageSource, StagedImage},
    image::{Image, RegisterRequest},
};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    agent,
    place::{Place, Placed},
    publish::{Made, Makes, Publish, Turns, host_of},
};

/// Makes an image of a root filesystem in a file or a directory.
pub struct Register {
    turns: Arc<Turns>,
}

impl Register {
    /// With the turns of all publications.
    pub fn new(turns: Arc<Turns>) -> Self {
        Self { turns }
    }
}

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RegisterOrder {
    /// The image it makes, minted with the operation.
    pub image_id: ImageId,
    /// What was asked for.
    pub register: RegisterRequest,
}

/// What the steps found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    host: Option<HostId>,
    staged: Option<StagedImage>,
    image: Option<Image>,
}

impl Kind for Register {
    const NAME: &'static str = "image.register";
    type Request = RegisterOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Place), Box::new(Stage), Box::new(Publish)]
    }

    fn result(&self, _: &RegisterOrder, journal: &Journal) -> Value {
        json!(journal.image)
    }
}

impl Placed for Register {
    fn wanted(order: &RegisterOrder) -> Option<&HostId> {
        order.register.host.as_ref()
    }

    fn placed(journal: &mut Journal, host: HostId) {
        journal.host = Some(host);
    }
}

impl Makes for Register {
    fn turns(&self) -> &Turns {
        &self.turns
    }

    fn made(order: &RegisterOrder) -> Made<'_> {
        let RegisterRequest { name, source, replace, .. } = &order.register;
        Made { id: order.image_id, name, source: source.to_string(), replace: *replace }
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
/// does; a host-agent that was started anew has lost an upload, and says so.
struct Stage;

#[async_trait]
impl Step<Register> for Stage {
    fn name(&self) -> &'static str {
        "stage"
    }

    async fn run(
        &self,
        cx: &Context,
        _: &Register,
        order: &RegisterOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let RegisterRequest { source, config, .. } = &order.register;
        let source = StageSource::File { from: source.clone(), config: config.clone() };
        journal.staged = Some(agent::stage(cx, host_of::<Register>(journal)?, source).await?);
        Ok(())
    }

    async fn undo(&self, cx: &Context, _: &Register, _: &RegisterOrder, journal: &Journal) -> Result<(), StepError> {
        Ok(agent::discard(cx, host_of::<Register>(journal)?).await?)
    }
}

//! `image.build`: each step's result found or made, then the name.
//!
//! A build has no VM of its own: what is not known is made by a child, `image.build_step`, one after the other, and each of these gives an
//! image. So a build that is killed goes on with the child it had, and what was made is not made again.

mod children;
mod guest;
mod log;
mod script;
mod step;
mod vm;

use std::sync::Arc;

use async_trait::async_trait;
use contract::{
    ApiError, ImageId, ImageName,
    image::{BuildRequest, Built, Image},
};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use step::BuildStep;

use super::{
    name::given_back,
    name_taken,
    publish::{Made, Naming, Turns, attach},
};
use crate::{
    db::{
        build_cache::{Hit, cache_use},
        image::image_named,
        name::name_return,
    },
    domain::build,
};
use log::Log;

/// Builds an image.
pub struct Build {
    turns: Arc<Turns>,
}

impl Build {
    /// With the turns of all publications.
    pub fn new(turns: Arc<Turns>) -> Self {
        Self { turns }
    }

    /// What builds of one name exclude each other by.
    pub fn resource(name: &ImageName) -> String {
        format!("image-build:{name}")
    }
}

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BuildOrder {
    /// The image that the base meant when the order was given.
    pub base: Hit,
    /// What was asked for.
    pub build: BuildRequest,
}

/// What the steps found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    last: Option<Hit>,
    ran: u32,
    cached: u32,
    image: Option<Image>,
}

impl Kind for Build {
    const NAME: &'static str = "image.build";
    const COORDINATES: bool = true;
    type Request = BuildOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Make), Box::new(Name)]
    }

    fn result(&self, _: &BuildOrder, journal: &Journal) -> Value {
        let image = journal.image.clone();
        json!(image.map(|image| Built { image, ran: journal.ran, cached: journal.cached }))
    }
}

/// Finds or makes the result of each step. A repeat finds the children of the first try, as they have the same keys.
struct Make;

#[async_trait]
impl Step<Build> for Make {
    fn name(&self) -> &'static str {
        "build"
    }

    async fn run(&self, cx: &Context, _: &Build, order: &BuildOrder, journal: &mut Journal) -> Result<(), StepError> {
        let mut last = order.base.clone();
        (journal.ran, journal.cached) = (0, 0);
        for (n, step) in order.build.steps.iter().enumerate() {
            cx.checkpoint()?;
            let key = build::key(&last.digest, step)?;
            // A child that began already goes on, whatever is known now.
            let begun = children::find(cx, n).await?.is_some();
            if !begun {
                if !order.build.no_cache
                    && let Some(hit) = known(cx, &key).await?
                {
                    Log::new(cx.operation(), n).note(cx, &log::cached(order, n, &hit)).await?;
                    journal.cached += 1;
                    last = hit;
                    continue;
                }
                check_name(cx, &order.build).await?;
                children::begin(cx, order, n, &last, &key).await?;
            }
            last = children::ended(cx, n, order.build.steps.len()).await?;
            journal.ran += 1;
        }
        journal.last = Some(last);
        Ok(())
    }

    async fn undo(&self, cx: &Context, _: &Build, order: &BuildOrder, _: &Journal) -> Result<(), StepError> {
        children::call_off(cx, order.build.steps.len()).await
    }
}

async fn known(cx: &Context, key: &str) -> Result<Option<Hit>, StepError> {
    let client = cx.store().client().await?;
    Ok(cache_use(&client, key).await?)
}

/// The publication decides who has the name; but what is lost already need not be built.
async fn check_name(cx: &Context, request: &BuildRequest) -> Result<(), StepError> {
    let client = cx.store().client().await?;
    match image_named(&client, &request.name).await? {
        Some(holder) if !request.replace => {
            Err(StepError::permanent(name_taken(&request.name, Some(&holder.source), Some("--replace"))))
        }
        _ => Ok(()),
    }
}

/// Makes the name mean the last step's image.
struct Name;

#[async_trait]
impl Step<Build> for Name {
    fn name(&self) -> &'static str {
        "publish"
    }

    async fn run(
        &self,
        cx: &Context,
        kind: &Build,
        order: &BuildOrder,
        journal: &mut Journal,
    ) -> Result<(), StepError> {
        let missing = || StepError::permanent(ApiError::internal("the journal of this build names no image"));
        let last = journal.last.as_ref().ok_or_else(missing)?;
        let request = &order.build;
        let made = Made {
            id: last.image,
            name: &request.name,
            source: format!("build of {} from {}", request.name, order.base.digest),
            replace: request.replace,
            yields: false,
            kernel: Naming::Untold,
        };
        let named = attach(cx, &kind.turns, &made, last.image, None).await?;
        let gone = || gone(last.image);
        journal.image = Some(named.ok_or_else(gone)?);
        Ok(())
    }

    async fn undo(&self, cx: &Context, _: &Build, order: &BuildOrder, _: &Journal) -> Result<(), StepError> {
        let mut client = cx.store().client().await?;
        given_back(name_return(&mut client, &order.build.name, cx.fence()).await?)
    }
}

fn gone(image: ImageId) -> StepError {
    StepError::permanent(
        ApiError::aborted(format!("the image {image} was built and deleted before it had its name"))
            .hint("build it again"),
    )
}

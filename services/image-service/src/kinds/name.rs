//! `image.tag` and `image.rename`: names that are made, moved and changed, while images stay where they are.

use async_trait::async_trait;
use contract::{
    ApiError, ImageId, ImageName,
    image::{Image, RenameRequest},
};
use operations::{Context, Kind, Step, StepError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{name_taken, publish::claim_lost};
use crate::db::name::{name_hold, name_rename_back, name_return, names_hold};

/// Gives an image a name.
pub struct Tag;

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TagOrder {
    /// The image.
    pub image_id: ImageId,
    /// The name it gets.
    pub name: ImageName,
    /// Whether the name is taken from the image that has it.
    pub replace: bool,
}

/// Changes a name.
pub struct Rename;

/// The stored request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenameOrder {
    /// The image the name meant when the order was given.
    pub image_id: ImageId,
    /// The name as it is, and as it is to be.
    pub rename: RenameRequest,
}

/// What the step found out.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Journal {
    image: Option<Image>,
}

impl Kind for Tag {
    const NAME: &'static str = "image.tag";
    type Request = TagOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Point)]
    }

    fn result(&self, _: &TagOrder, journal: &Journal) -> Value {
        json!(journal.image)
    }
}

impl Kind for Rename {
    const NAME: &'static str = "image.rename";
    type Request = RenameOrder;
    type Journal = Journal;

    fn steps(&self) -> Vec<Box<dyn Step<Self>>> {
        vec![Box::new(Change)]
    }

    fn result(&self, _: &RenameOrder, journal: &Journal) -> Value {
        json!(journal.image)
    }
}

/// Makes the name mean the image. A repeat finds that it does.
struct Point;

#[async_trait]
impl Step<Tag> for Point {
    fn name(&self) -> &'static str {
        "tag"
    }

    async fn run(&self, cx: &Context, _: &Tag, order: &TagOrder, journal: &mut Journal) -> Result<(), StepError> {
        let mut client = cx.store().client().await?;
        let held = name_hold(&mut client, &order.name, order.image_id, cx.fence()).await?;
        if held.holder.is_some_and(|holder| holder.image != order.image_id) && !order.replace {
            return Err(StepError::permanent(name_taken(&order.name, None, Some("--replace"))));
        }
        if !held.keep(order.image_id).await? {
            return Err(StepError::permanent(gone(order.image_id)));
        }
        let image = held.point(order.image_id, None, "tagged").await?;
        journal.image = Some(image.ok_or_else(|| StepError::retry(claim_lost()))?);
        Ok(())
    }

    async fn undo(&self, cx: &Context, _: &Tag, order: &TagOrder, _: &Journal) -> Result<(), StepError> {
        let mut client = cx.store().client().await?;
        given_back(name_return(&mut client, &order.name, cx.fence()).await?)
    }
}

/// Changes the name. A repeat finds the new one set by this operation.
struct Change;

#[async_trait]
impl Step<Rename> for Change {
    fn name(&self) -> &'static str {
        "rename"
    }

    async fn run(&self, cx: &Context, _: &Rename, order: &RenameOrder, journal: &mut Journal) -> Result<(), StepError> {
        let (from, to) = (&order.rename.from, &order.rename.to);
        let mut client = cx.store().client().await?;
        let (held, old) = names_hold(&mut client, from, to, order.image_id, cx.fence()).await?;
        if held.holder.is_some_and(|holder| holder.set_by == Some(cx.operation())) {
            journal.image = held.published(order.image_id).await?;
            return Ok(());
        }
        if held.holder.is_some() {
            return Err(StepError::permanent(name_taken(to, None, None)));
        }
        let old = old.filter(|old| old.image == order.image_id);
        let (Some(old), true) = (old, held.keep(order.image_id).await?) else {
            let error = ApiError::aborted(format!("the name {from} was taken away or moved meanwhile"));
            return Err(StepError::permanent(error.hint("`warren image ls` shows what it means now")));
        };
        held.leave(from).await?;
        let image = held.point(order.image_id, old.source.as_deref(), "renamed").await?;
        journal.image = Some(image.ok_or_else(|| StepError::retry(claim_lost()))?);
        Ok(())
    }

    /// The old name comes back, unless somebody has it by now: then the image keeps the new one.
    async fn undo(&self, cx: &Context, _: &Rename, order: &RenameOrder, _: &Journal) -> Result<(), StepError> {
        let mut client = cx.store().client().await?;
        let (from, to) = (&order.rename.from, &order.rename.to);
        given_back(name_rename_back(&mut client, from, to, cx.fence()).await?)
    }
}

/// What came of an undo that is to be written by whoever has the operation.
pub(super) fn given_back(written: bool) -> Result<(), StepError> {
    if written { Ok(()) } else { Err(StepError::retry(claim_lost())) }
}

fn gone(image: ImageId) -> ApiError {
    ApiError::not_found(format!("the image {image} was deleted meanwhile")).hint("`warren image ls` lists the images")
}

//! The images of a lab: each is found, or pulled, once; missing ones side by side.

use std::collections::BTreeMap;

use contract::{HostId, ImageId, OperationId};
use futures::{StreamExt, stream::FuturesUnordered};
use operations::{Context, StepError};
use serde::{Deserialize, Serialize};

use super::up::LabVmOrder;
use crate::kinds::image::{self, Search};

/// An image as far as placement and reservation are concerned.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resolved {
    /// Its id.
    pub id: ImageId,
    /// Its name.
    pub name: String,
    /// The hosts that hold it.
    pub hosts: Vec<HostId>,
}

/// Resolves the images of these VMs, by what the requests call them. `pulls` remembers, in the order of those, the pulls that were
/// needed.
///
/// # Errors
/// The first that cannot be had; others may be pulled still.
pub async fn resolve(
    cx: &Context,
    vms: &[&LabVmOrder],
    pulls: &mut Vec<Option<OperationId>>,
) -> Result<BTreeMap<String, Resolved>, StepError> {
    let mut searches: BTreeMap<&str, Search<'_>> = BTreeMap::new();
    for vm in vms {
        let create = &vm.create;
        let search = Search { image: &create.image, host: create.host.as_ref(), vm: &create.name, part: None };
        let known = searches.entry(&create.image).or_insert(search);
        known.host = known.host.or(create.host.as_ref());
    }
    *pulls = vec![None; searches.len()];
    let searches = searches.into_values().enumerate().map(|(n, search)| Search { part: Some(n), ..search });
    let mut all: FuturesUnordered<_> =
        searches.zip(pulls.iter_mut()).map(|(search, pull)| one(cx, search, pull)).collect();
    let mut found = BTreeMap::new();
    while let Some(one) = all.next().await {
        let (image, resolved) = one?;
        found.insert(image, resolved);
    }
    Ok(found)
}

async fn one(
    cx: &Context,
    search: Search<'_>,
    pull: &mut Option<OperationId>,
) -> Result<(String, Resolved), StepError> {
    let image = image::resolve(cx, search, pull).await?;
    let found = Resolved { id: image.id, name: image.name.to_string(), hosts: image.hosts };
    Ok((search.image.to_owned(), found))
}

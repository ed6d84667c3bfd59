//! Resolving a create's image: the one the lab holds, or the one it pulls now.

use contract::{
    ApiError, ErrorCode, HostId, ImageName, OperationId, VmName,
    image::{Get, Image, ImageRef, ImageSource, Pull, PullRequest},
    operation::{self, Operation, OperationRef, OperationState, Seen, WaitRequest},
};
use operations::{Context, StepError};

use bus::CallOptions;

use crate::domain::reference::{self, Wanted};

/// How long one round of waiting for a pull lasts, in milliseconds: then a cancel is looked for.
const ROUND_MS: u64 = 2_000;

/// What a create wants as its image.
#[derive(Clone, Copy, Debug)]
pub struct Search<'a> {
    /// As the request says.
    pub image: &'a str,
    /// The host the VM is to be on, if the request says.
    pub host: Option<&'a HostId>,
    /// The VM, for messages.
    pub vm: &'a VmName,
    /// Which of several images of one operation it is.
    pub part: Option<usize>,
}

/// Finds the image, pulling it when it is a reference the lab does not hold. `pull` remembers the pull for a
/// cancel.
///
/// # Errors
/// `not_found` for a name nobody knows; the pull's own error; `failed_precondition` when the name the reference would
/// get belongs to another image.
pub async fn resolve(cx: &Context, search: Search<'_>, pull: &mut Option<OperationId>) -> Result<Image, StepError> {
    match reference::parse(search.image)? {
        Wanted::Known(name) => get(cx, &name).await?.ok_or_else(|| {
            let error = ApiError::not_found(format!("there is no image {name}"));
            StepError::permanent(error.hint(
                "`warren image ls` lists the images; a registry reference such as docker.io/library/debian:12 is pulled",
            ))
        }),
        Wanted::Reference { reference, name } => {
            if let Some(image) = get(cx, name.as_str()).await?
                && image.source == reference
            {
                return Ok(image);
            }
            // A name from another source is no obstacle where that gave the same digest.
            let failure = match pulled(cx, search, &reference, &name, pull).await {
                Ok(image) => return Ok(image),
                Err(failure) if failure.error.code == ErrorCode::AlreadyExists => failure,
                Err(failure) => return Err(failure),
            };
            // Perhaps somebody else pulled the same to this name meanwhile: what matters is what the name holds now.
            match get(cx, name.as_str()).await? {
                Some(image) => same_source(image, &reference, search.vm),
                None => Err(failure),
            }
        }
    }
}

async fn get(cx: &Context, name_or_id: &str) -> Result<Option<Image>, StepError> {
    match cx.bus().call::<Get>(&ImageRef { image: name_or_id.to_owned() }).await {
        Ok(image) => Ok(Some(image)),
        Err(error) if error.code == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn same_source(image: Image, reference: &str, vm: &VmName) -> Result<Image, StepError> {
    if image.source == reference {
        return Ok(image);
    }
    let error = ApiError::failed_precondition(format!(
        "the image {reference} for VM {vm} would be named {}, but that is another image, from {}",
        image.name, image.source
    ));
    Err(StepError::permanent(error.hint("pull it under a name of your choice and create the VM from that name")))
}

/// Has the image pulled, waits for it and tells what it is. The request key makes a repeat wait for the same pull.
async fn pulled(
    cx: &Context,
    search: Search<'_>,
    reference: &str,
    name: &ImageName,
    pull: &mut Option<OperationId>,
) -> Result<Image, StepError> {
    let request = PullRequest {
        source: ImageSource::Registry(reference.to_owned()),
        name: name.clone(),
        host: search.host.cloned(),
        if_newer: false,
        wait: false,
        timeout_ms: operation::default_wait_ms(),
    };
    let part = search.part.map(|part| format!("-{part}")).unwrap_or_default();
    let options = CallOptions { request_key: Some(format!("{}-pull{part}", cx.operation())), ..CallOptions::default() };
    let mut pulling: Operation = cx.bus().call_with::<Pull>(&request, options).await?;
    *pull = Some(pulling.id);
    while !pulling.state.is_final() {
        cx.checkpoint()?;
        cx.progress("pull", pulling.progress.unwrap_or_default()).await;
        let seen = Seen { state: pulling.state, phase: pulling.phase.clone(), progress: pulling.progress };
        let request = WaitRequest { id: pulling.id, timeout_ms: ROUND_MS, changed_from: Some(seen) };
        pulling = tokio::select! {
            waited = cx.bus().call::<operation::Wait>(&request) => waited?,
            () = cx.cancelled() => continue,
        };
    }
    if pulling.state == OperationState::Succeeded {
        let image = pulling.result.map(serde_json::from_value::<Image>).transpose();
        return image.ok().flatten().ok_or_else(|| {
            StepError::permanent(ApiError::internal(format!("the pull of {reference} does not say what it made")))
        });
    }
    let mut error = pulling.error.unwrap_or_else(|| ApiError::internal("the pull failed without saying why"));
    if error.code == ErrorCode::Cancelled {
        // Not this operation was cancelled but the pull it needs.
        error = ApiError::aborted(format!("the pull of {reference} was cancelled"));
    }
    error.message = format!("the image {reference} cannot be pulled: {}", error.message);
    Err(StepError::permanent(error))
}

/// Cancels the pull of a create that is given up; best effort, because a whole image does no harm.
pub async fn give_up(cx: &Context, pull: OperationId) {
    if let Err(error) = cx.bus().call::<operation::Cancel>(&OperationRef { id: pull }).await {
        tracing::info!(operation.pull = %pull, %error, "a pull goes on although its create was given up");
    }
}

//! `warren image pull`

use contract::{
    ApiError, deadline,
    image::{self, ImageSource, PullRequest},
};

use super::here;
use crate::{
    args::{Global, image::PullArgs},
    client::Client,
    commands::{parse, parse_some},
    failure::{Failure, Outcome},
    output::Format,
    wait,
};

/// Pulls, and shows what is here now.
pub(super) async fn run(global: &Global, format: Format, args: PullArgs) -> Result<Outcome, Failure> {
    let PullArgs { reference, name, layout, manifest, host, if_newer, waiting } = args;
    let source = source(reference, layout, manifest)?;
    let (name, host) = (parse(&name)?, parse_some(host.as_deref())?);
    let request = PullRequest { source, name, host, if_newer, wait: false, timeout_ms: deadline::WAIT_DEFAULT_MS };
    let client = Client::connect(global).await?;
    let operation = client.change::<image::Pull>(&request, deadline::QUICK).await?;
    wait::settle(&client, operation, format, waiting.no_wait, async |ended| here(&ended)).await
}

fn source(reference: String, layout: bool, manifest: Option<String>) -> Result<ImageSource, ApiError> {
    if !layout {
        return Ok(ImageSource::Registry(reference));
    }
    let path = std::path::absolute(&reference)
        .map_err(|error| ApiError::invalid_argument(format!("{reference:?} is no path: {error}")))?;
    let path = path.into_os_string().into_string();
    let path = path.map_err(|path| ApiError::invalid_argument(format!("the path {path:?} is not UTF-8")))?;
    Ok(ImageSource::Layout { path, reference: manifest })
}

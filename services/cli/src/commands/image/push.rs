//! `warren image push`

use contract::{
    ApiError,
    agent::PushedBundle,
    deadline,
    image::{self, PushRequest},
    operation::Operation,
};

use crate::{
    args::{Global, image::PushArgs},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
    wait,
};

/// Pushes, and shows what the registry has now.
pub(super) async fn run(global: &Global, format: Format, args: PushArgs) -> Result<Outcome, Failure> {
    let PushArgs { image, reference, waiting } = args;
    let request = PushRequest { image, reference, wait: false, timeout_ms: deadline::WAIT_DEFAULT_MS };
    let client = Client::connect(global).await?;
    let operation = client.change::<image::Push>(&request, deadline::QUICK).await?;
    wait::settle(&client, operation, format, waiting.no_wait, async |operation| pushed(&operation)).await
}

fn pushed(operation: &Operation) -> Result<(), Failure> {
    let result = operation.result.clone().unwrap_or_default();
    let pushed: PushedBundle = serde_json::from_value(result["pushed"].clone())
        .map_err(|error| ApiError::internal(format!("the result of the push cannot be read: {error}")))?;
    let reference = output::clean(result["reference"].as_str().unwrap_or_default());
    let (size, sent) = (indicatif::BinaryBytes(pushed.bundle_bytes), indicatif::BinaryBytes(pushed.sent_bytes));
    output::text(&format!(
        "{reference} is there: bundle {} ({size}, {sent} sent), image {}\n",
        output::clean(&pushed.manifest),
        output::clean(&pushed.image)
    ))
}

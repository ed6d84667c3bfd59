//! `warren image rm`

use contract::{
    deadline,
    image::{self, DeleteRequest},
};

use crate::{
    args::{Global, image::RmArgs},
    client::Client,
    commands::gone,
    failure::{Failure, Outcome},
    output::{self, Format},
    wait,
};

/// Takes a name away, or an image with all its names.
pub(super) async fn run(global: &Global, format: Format, args: RmArgs) -> Result<Outcome, Failure> {
    let RmArgs { image, waiting } = args;
    let client = Client::connect(global).await?;
    let request = DeleteRequest { image: image.clone(), wait: false, timeout_ms: deadline::WAIT_DEFAULT_MS };
    let operation = client.change::<image::Delete>(&request, deadline::QUICK).await?;
    wait::settle(&client, operation, format, waiting.no_wait, async |ended| {
        output::text(&gone::told("image", &image, &ended))
    })
    .await
}

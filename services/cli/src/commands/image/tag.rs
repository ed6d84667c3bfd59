//! `warren image tag`

use contract::{
    deadline,
    image::{self, TagRequest},
};

use crate::{
    args::{Global, image::TagArgs},
    client::Client,
    commands::parse,
    failure::{Failure, Outcome},
    output::{self, Format},
    wait,
};

/// Gives an image one more name.
pub(super) async fn run(global: &Global, format: Format, args: TagArgs) -> Result<Outcome, Failure> {
    let TagArgs { image, name, replace, waiting } = args;
    let (name, timeout_ms) = (parse(&name)?, deadline::WAIT_DEFAULT_MS);
    let text = format!("image {} is {name} now\n", output::clean(&image));
    let request = TagRequest { image, name, replace, wait: false, timeout_ms };
    let client = Client::connect(global).await?;
    let operation = client.change::<image::Tag>(&request, deadline::QUICK).await?;
    wait::settle(&client, operation, format, waiting.no_wait, async |_| output::text(&text)).await
}

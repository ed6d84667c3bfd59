//! `warren image rename`

use contract::{
    deadline,
    image::{self, RenameRequest},
};

use crate::{
    args::{Global, image::RenameArgs},
    client::Client,
    commands::parse,
    failure::{Failure, Outcome},
    output::{self, Format},
    wait,
};

/// Changes a name of an image.
pub(super) async fn run(global: &Global, format: Format, args: &RenameArgs) -> Result<Outcome, Failure> {
    let (from, to, timeout_ms) = (parse(&args.from)?, parse(&args.to)?, deadline::WAIT_DEFAULT_MS);
    let text = format!("image {from} is {to} now\n");
    let request = RenameRequest { from, to, wait: false, timeout_ms };
    let client = Client::connect(global).await?;
    let operation = client.change::<image::Rename>(&request, deadline::QUICK).await?;
    wait::settle(&client, operation, format, args.waiting.no_wait, async |_| output::text(&text)).await
}

//! `warren image promote`

use contract::{
    ApiError, deadline,
    image::{self, Image, PromoteRequest},
    operation::Operation,
};

use super::super::{parse, vm::keys_in};
use crate::{
    args::{Global, image::PromoteArgs},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
    wait,
};

/// Promotes a VM, and shows the image.
pub(super) async fn run(global: &Global, format: Format, args: PromoteArgs) -> Result<Outcome, Failure> {
    let PromoteArgs { vm, name, replace, keep_identity, ssh_key, waiting } = args;
    let ssh_keys = keys_in(&ssh_key)?;
    let (name, timeout_ms) = (parse(&name)?, deadline::WAIT_DEFAULT_MS);
    let request = PromoteRequest { vm, name, replace, keep_identity, ssh_keys, wait: false, timeout_ms };
    let client = Client::connect(global).await?;
    let operation = client.change::<image::Promote>(&request, deadline::QUICK).await?;
    wait::settle(&client, operation, format, waiting.no_wait, async |operation| promoted(&operation)).await
}

fn promoted(operation: &Operation) -> Result<(), Failure> {
    let result = operation.result.clone().unwrap_or_default();
    let unreadable = |error| ApiError::internal(format!("the result of the promotion cannot be read: {error}"));
    let image: Image = serde_json::from_value(result["image"].clone()).map_err(unreadable)?;
    let size = indicatif::BinaryBytes(image.rootfs_bytes);
    output::text(&format!("image {} is here: {} ({size})\n", image.name, image.digest))?;
    for disk in result["left_out"].as_array().into_iter().flatten().filter_map(|disk| disk.as_str()) {
        output::text(&format!("not in it: the disk {}\n", output::clean(disk)))?;
    }
    Ok(())
}

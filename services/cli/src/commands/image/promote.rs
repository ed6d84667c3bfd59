//! `warren image promote`

use contract::{
    ApiError, deadline,
    image::{self, Image, PromoteRequest, PromotedKernel},
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

/// What means no kernel; one that is called so is named by its digest.
const DEFAULT: &str = "default";

/// Promotes a VM, and shows the image.
pub(super) async fn run(global: &Global, format: Format, args: PromoteArgs) -> Result<Outcome, Failure> {
    let PromoteArgs { vm, name, replace, keep_identity, ssh_key, kernel, waiting } = args;
    let ssh_keys = keys_in(&ssh_key)?;
    let (name, timeout_ms) = (parse(&name)?, deadline::WAIT_DEFAULT_MS);
    let kernel = match kernel.as_deref() {
        None => PromotedKernel::OfVm,
        Some(DEFAULT) => PromotedKernel::Default,
        Some(reference) => PromotedKernel::Named(reference.to_owned()),
    };
    let request = PromoteRequest { vm, name, replace, keep_identity, ssh_keys, kernel, wait: false, timeout_ms };
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
    if let Some(kernel) = &image.kernel {
        output::text(&format!("its VMs boot Linux {}\n", output::clean(&kernel.release)))?;
    }
    if let Some(kernel) = result["kernel_left_out"].as_str() {
        let text = "not in it: the kernel that the VM boots,";
        output::text(&format!("{text} {}; `warren image kernel` has it name one\n", output::clean(kernel)))?;
    }
    for disk in result["left_out"].as_array().into_iter().flatten().filter_map(|disk| disk.as_str()) {
        output::text(&format!("not in it: the disk {}\n", output::clean(disk)))?;
    }
    Ok(())
}

//! `warren image kernel`

use contract::{
    deadline,
    image::{self, SetKernelRequest},
};

use crate::{
    args::{Global, image::ImageKernelArgs},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
};

/// Lets an image name another kernel, or none.
pub(super) async fn run(global: &Global, format: Format, args: ImageKernelArgs) -> Result<Outcome, Failure> {
    let request = SetKernelRequest { image: args.image, kernel: args.kernel };
    let client = Client::connect(global).await?;
    let image = client.change::<image::SetKernel>(&request, deadline::QUICK).await?;
    match (format, &image.kernel) {
        (Format::Json, _) => output::json(&image)?,
        (Format::Table, Some(kernel)) => {
            output::text(&format!("new VMs of {} boot Linux {}\n", image.name, output::clean(&kernel.release)))?;
        }
        (Format::Table, None) => output::text(&format!("new VMs of {} boot the lab's default kernel\n", image.name))?,
    }
    Ok(Outcome::Done)
}

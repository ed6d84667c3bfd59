//! `warren image show`

use contract::image::{self, Image, ImageRef};

use super::hosts;
use crate::{
    args::{Global, image::ShowArgs},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
};

/// Shows one image.
pub(super) async fn run(global: &Global, format: Format, args: ShowArgs) -> Result<Outcome, Failure> {
    let image = Client::connect(global).await?.ask::<image::Get>(&ImageRef { image: args.image }).await?;
    match format {
        Format::Json => output::json(&image)?,
        Format::Table => show(&image)?,
    }
    Ok(Outcome::Done)
}

fn show(image: &Image) -> Result<(), Failure> {
    output::pairs(vec![
        ("name", image.name.to_string()),
        ("names", image.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        ("id", image.id.to_string()),
        ("digest", image.digest.clone()),
        ("source", image.source.clone()),
        ("architecture", image.architecture.clone()),
        ("size", indicatif::BinaryBytes(image.rootfs_bytes).to_string()),
        (
            "kernel",
            image
                .kernel
                .as_ref()
                .map(|it| format!("Linux {} ({})", output::clean(&it.release), it.digest))
                .unwrap_or_default(),
        ),
        ("hosts", hosts(image)),
        ("unnamed for", image.unnamed_at.map(output::age).unwrap_or_default()),
        ("entrypoint", image.config.entrypoint.join(" ")),
        ("cmd", image.config.cmd.join(" ")),
        ("env", image.config.env.join("\n")),
        ("working dir", image.config.working_dir.clone()),
        ("user", image.config.user.clone()),
        ("age", output::age(image.created_at)),
    ])
}

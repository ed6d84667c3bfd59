//! `warren image …`: one file a verb.

mod build;
mod export;
mod gc;
mod import;
mod kernel;
mod log;
mod ls;
mod promote;
mod pull;
mod push;
mod register;
mod rename;
mod rm;
mod show;
mod tag;

use contract::{ApiError, image::Image, operation::Operation};

use crate::{
    args::{Global, ImageCommand},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
    upload::{self, Opened},
};

/// Tells which image an operation gave: what its name means by now may be another's.
fn here(operation: &Operation) -> Result<(), Failure> {
    let image: Image = serde_json::from_value(operation.result.clone().unwrap_or_default())
        .map_err(|error| ApiError::internal(format!("the result of the operation cannot be read: {error}")))?;
    let size = indicatif::BinaryBytes(image.rootfs_bytes);
    output::text(&format!("image {} is here: {} ({size})\n", image.name, image.digest))
}

/// Runs a command about images.
///
/// # Errors
/// What the service answered.
pub async fn run(global: &Global, format: Format, command: ImageCommand) -> Result<Outcome, Failure> {
    match command {
        ImageCommand::Pull(args) => pull::run(global, format, args).await,
        ImageCommand::Push(args) => push::run(global, format, args).await,
        ImageCommand::Promote(args) => promote::run(global, format, args).await,
        ImageCommand::Build(args) => build::run(global, format, *args).await,
        ImageCommand::Log(args) => log::run(global, format, args).await,
        ImageCommand::Register(args) => register::run(global, format, args).await,
        ImageCommand::Export(args) => export::run(global, format, args).await,
        ImageCommand::Import(args) => import::run(global, format, args).await,
        ImageCommand::Ls(args) => ls::run(global, format, &args).await,
        ImageCommand::Tag(args) => tag::run(global, format, args).await,
        ImageCommand::Rename(args) => rename::run(global, format, &args).await,
        ImageCommand::Gc(args) => gc::run(global, format, &args).await,
        ImageCommand::Kernel(args) => kernel::run(global, format, args).await,
        ImageCommand::Show(args) => show::run(global, format, args).await,
        ImageCommand::Rm(args) => rm::run(global, format, args).await,
    }
}

/// Waits for the operation that makes an image, while what it is made of is sent, and shows the image.
async fn made(
    client: &Client,
    operation: Operation,
    upload: Option<Opened>,
    format: Format,
    no_wait: bool,
) -> Result<Outcome, Failure> {
    upload::made(client, operation, upload, format, no_wait, async |operation: Operation| here(&operation)).await
}

/// The hosts that hold it; those that lost it with a mark.
fn hosts(image: &Image) -> String {
    let here = image.hosts.iter().map(ToString::to_string);
    here.chain(image.missing.iter().map(|host| format!("!{host}"))).collect::<Vec<_>>().join(",")
}

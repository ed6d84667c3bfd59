//! `warren image …`

use contract::{
    ApiError,
    agent::PushedBundle,
    deadline,
    image::{
        self, DeleteRequest, Image, ImageList, ImageRef, ImageSource, ListRequest, PullRequest, PushRequest,
        RenameRequest, TagRequest,
    },
    operation::Operation,
};

use super::{parse, parse_some};
use crate::{
    args::{Global, ImageCommand},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
    wait,
};

/// The images of one request for a list.
const PAGE: u32 = 200;

/// Runs a command about images.
///
/// # Errors
/// What the service answered.
pub async fn run(global: &Global, format: Format, command: ImageCommand) -> Result<Outcome, Failure> {
    match command {
        ImageCommand::Pull { reference, name, layout, manifest, host, if_newer, waiting } => {
            let source = source(reference, layout, manifest)?;
            let (name, host) = (parse(&name)?, parse_some(host.as_deref())?);
            let request =
                PullRequest { source, name, host, if_newer, wait: false, timeout_ms: deadline::WAIT_DEFAULT_MS };
            let client = Client::connect(global).await?;
            let operation = client.change::<image::Pull>(&request, deadline::QUICK).await?;
            let name = request.name.to_string();
            wait::settle(&client, operation, format, waiting.no_wait, async |_| {
                let image = client.ask::<image::Get>(&ImageRef { image: name }).await?;
                let size = indicatif::BinaryBytes(image.rootfs_bytes);
                output::text(&format!("image {} is here: {} ({size})\n", image.name, image.digest))
            })
            .await
        }
        ImageCommand::Push { image, reference, waiting } => {
            let request = PushRequest { image, reference, wait: false, timeout_ms: deadline::WAIT_DEFAULT_MS };
            let client = Client::connect(global).await?;
            let operation = client.change::<image::Push>(&request, deadline::QUICK).await?;
            wait::settle(&client, operation, format, waiting.no_wait, async |operation| pushed(&operation)).await
        }
        ImageCommand::Ls { all, digests } => {
            let list = list(&Client::connect(global).await?, all).await?;
            match format {
                Format::Json => output::json(&list)?,
                Format::Table => {
                    let last = if digests { "DIGEST" } else { "SOURCE" };
                    let header = ["NAME", "SIZE", "ARCH", "HOSTS", "AGE", last];
                    output::table(&header, list.images.iter().map(|image| row(image, digests)).collect())?;
                }
            }
            Ok(Outcome::Done)
        }
        ImageCommand::Tag { image, name, replace, waiting } => {
            let (name, timeout_ms) = (parse(&name)?, deadline::WAIT_DEFAULT_MS);
            let text = format!("image {} is {name} now\n", output::clean(&image));
            let request = TagRequest { image, name, replace, wait: false, timeout_ms };
            let client = Client::connect(global).await?;
            let operation = client.change::<image::Tag>(&request, deadline::QUICK).await?;
            wait::settle(&client, operation, format, waiting.no_wait, async |_| output::text(&text)).await
        }
        ImageCommand::Rename { from, to, waiting } => {
            let (from, to, timeout_ms) = (parse(&from)?, parse(&to)?, deadline::WAIT_DEFAULT_MS);
            let text = format!("image {from} is {to} now\n");
            let request = RenameRequest { from, to, wait: false, timeout_ms };
            let client = Client::connect(global).await?;
            let operation = client.change::<image::Rename>(&request, deadline::QUICK).await?;
            wait::settle(&client, operation, format, waiting.no_wait, async |_| output::text(&text)).await
        }
        ImageCommand::Show { image } => {
            let image = Client::connect(global).await?.ask::<image::Get>(&ImageRef { image }).await?;
            match format {
                Format::Json => output::json(&image)?,
                Format::Table => show(&image)?,
            }
            Ok(Outcome::Done)
        }
        ImageCommand::Rm { image, waiting } => {
            let client = Client::connect(global).await?;
            let request = DeleteRequest { image: image.clone(), wait: false, timeout_ms: deadline::WAIT_DEFAULT_MS };
            let operation = client.change::<image::Delete>(&request, deadline::QUICK).await?;
            let text = format!("image {} is gone\n", output::clean(&image));
            wait::settle(&client, operation, format, waiting.no_wait, async |_| output::text(&text)).await
        }
    }
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

async fn list(client: &Client, all: bool) -> Result<ImageList, ApiError> {
    let mut list = ImageList { images: Vec::new(), more: false };
    loop {
        let after = list.images.last().map(|image| image.name.clone());
        let page = client.ask::<image::List>(&ListRequest { limit: PAGE, after, all }).await?;
        let empty = page.images.is_empty();
        list.images.extend(page.images);
        if !page.more || empty {
            return Ok(list);
        }
    }
}

fn row(image: &Image, digests: bool) -> Vec<String> {
    vec![
        image.name.to_string(),
        indicatif::BinaryBytes(image.rootfs_bytes).to_string(),
        image.architecture.clone(),
        hosts(image),
        output::age(image.created_at),
        if digests { image.digest.clone() } else { image.source.clone() },
    ]
}

fn hosts(image: &Image) -> String {
    image.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
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
        ("hosts", hosts(image)),
        ("entrypoint", image.config.entrypoint.join(" ")),
        ("cmd", image.config.cmd.join(" ")),
        ("env", image.config.env.join("\n")),
        ("working dir", image.config.working_dir.clone()),
        ("user", image.config.user.clone()),
        ("age", output::age(image.created_at)),
    ])
}

//! `warren image ls`

use contract::{
    ApiError,
    image::{self, Image, ImageList, ListRequest},
};

use super::hosts;
use crate::{
    args::{Global, image::LsArgs},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
};

/// The images of one request for a list.
const PAGE: u32 = 200;

/// Lists images.
pub(super) async fn run(global: &Global, format: Format, args: &LsArgs) -> Result<Outcome, Failure> {
    let list = list(&Client::connect(global).await?, args.all).await?;
    match format {
        Format::Json => output::json(&list)?,
        Format::Table => {
            let last = if args.digests { "DIGEST" } else { "SOURCE" };
            let mut header = vec!["NAME", "SIZE", "ARCH", "HOSTS", "AGE", last];
            if args.all {
                header.push("UNNAMED FOR");
            }
            output::table(&header, list.images.iter().map(|image| row(image, args)).collect())?;
        }
    }
    Ok(Outcome::Done)
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

fn row(image: &Image, args: &LsArgs) -> Vec<String> {
    let mut row = vec![
        image.name.to_string(),
        indicatif::BinaryBytes(image.rootfs_bytes).to_string(),
        image.architecture.clone(),
        hosts(image),
        output::age(image.created_at),
        if args.digests { image.digest.clone() } else { image.source.clone() },
    ];
    if args.all {
        row.push(image.unnamed_at.map(output::age).unwrap_or_default());
    }
    row
}

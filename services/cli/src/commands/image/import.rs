//! `warren image import`

use contract::{
    ApiError, deadline,
    image::{self, ImportRequest},
};

use super::{made, register::Given};
use crate::{
    args::{Global, image::ImportArgs},
    client::Client,
    commands::{parse, parse_some},
    failure::{Failure, Outcome},
    output::Format,
    upload::Upload,
};

/// What archives are called, and images are not.
const ENDINGS: [&str; 2] = [".oci.tar", ".tar"];

/// Imports, sending what is of this machine, and shows what is here now.
pub(super) async fn run(global: &Global, format: Format, args: ImportArgs) -> Result<Outcome, Failure> {
    let name = args.name.clone().map_or_else(|| called(&args.file), Ok)?;
    let (name, host) = (parse(&name)?, parse_some(args.host.as_deref())?);
    let given = match args.file.as_str() {
        "-" => Given::Here(Upload::of_input()),
        file => Given::of(file)?,
    };
    if matches!(&given, Given::Here(upload) if upload.is_directory()) {
        return Err(ApiError::invalid_argument(format!("{} is a directory, and no archive", args.file))
            .hint("`warren image pull --layout` takes an OCI layout, `warren image register` a root filesystem")
            .into());
    }
    let client = Client::connect(global).await?;
    let (source, upload) = given.open(&client).await?;
    let (replace, timeout_ms) = (args.replace, deadline::WAIT_DEFAULT_MS);
    let request = ImportRequest { source, name, host, replace, wait: false, timeout_ms };
    let operation = client.change::<image::Import>(&request, deadline::QUICK).await?;
    made(&client, operation, upload, format, args.waiting.no_wait).await
}

/// The image's name by its file's.
fn called(file: &str) -> Result<String, ApiError> {
    let last = file.rsplit('/').next().unwrap_or_default();
    let name = ENDINGS.iter().find_map(|ending| last.strip_suffix(ending)).unwrap_or(last);
    if matches!(name, "" | "-" | "." | "..") {
        return Err(ApiError::invalid_argument(format!("{file} gives the image no name")).hint("name it with --name"));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_called_as_its_archive() {
        let name = |file: &str| called(file).ok();
        assert_eq!(name("/srv/web.oci.tar").as_deref(), Some("web"));
        assert_eq!(name("web.tar").as_deref(), Some("web"));
        assert_eq!(name("host:/srv/web").as_deref(), Some("web"));
        for none in ["-", "", "/srv/", ".oci.tar", ".."] {
            assert_eq!(name(none), None, "{none}");
        }
    }
}

//! `warren image export`

use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
};

use bus::ByteStream;
use contract::{
    ApiError, SessionId,
    agent::PushedBundle,
    deadline,
    image::{self, ExportRequest},
    operation::Operation,
};
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    args::{Global, image::ExportArgs},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
    upload::{PATIENCE, TOLD, watched},
    wait,
};

/// How much is taken at once.
const PIECE: usize = 64 << 10;

/// Takes the archive, and shows what it holds.
pub(super) async fn run(global: &Global, format: Format, args: ExportArgs) -> Result<Outcome, Failure> {
    let target = Target::of(args.file, &args.image, format)?;
    let client = Client::connect(global).await?;
    let session = SessionId::new();
    let stream = ByteStream::open_within(client.bus(), session, PATIENCE).await.map_err(ApiError::from)?;
    let timeout_ms = deadline::WAIT_DEFAULT_MS;
    let request = ExportRequest { image: args.image, session, wait: false, timeout_ms };
    let operation = client.change::<image::Export>(&request, deadline::QUICK).await?;
    let mut taking = tokio::spawn(target.take(stream));
    let ended = watched(&client, operation, format).await?;
    let operation = match wait::succeeded(ended) {
        Ok(operation) => operation,
        Err(error) => {
            // What went wrong here says more than that the archive was not taken.
            return Err(match tokio::time::timeout(TOLD, &mut taking).await {
                Ok(Ok(Err(Untaken::Here(here)))) => here.into(),
                _ => error.into(),
            });
        }
    };
    let taken = taking.await.map_err(|error| ApiError::internal(format!("the archive was not taken: {error}")))?;
    let (target, length) = taken.map_err(Untaken::told)?;
    let exported = exported(&operation)?;
    if length != exported.sent_bytes {
        let message = format!("{length} bytes of the archive came, and {} were sent", exported.sent_bytes);
        return Err(ApiError::internal(message).into());
    }
    let Some(path) = target.keep()? else { return Ok(Outcome::Done) };
    match format {
        Format::Json => output::json(&operation)?,
        Format::Table => {
            let (size, image) = (indicatif::BinaryBytes(length), output::clean(&exported.image));
            output::text(&format!("{} is there: {size}, image {image}\n", path.display()))?;
        }
    }
    Ok(Outcome::Done)
}

fn exported(operation: &Operation) -> Result<PushedBundle, ApiError> {
    let result = operation.result.clone().unwrap_or_default();
    serde_json::from_value(result["exported"].clone())
        .map_err(|error| ApiError::internal(format!("the result of the export cannot be read: {error}")))
}

/// Where the archive goes.
enum Target {
    /// A file beside its place, until it is whole.
    File(PathBuf, NamedTempFile),
    Output,
}

/// Why the archive was not taken.
enum Untaken {
    /// It cannot be written here.
    Here(ApiError),
    /// It did not come to its end.
    There(io::Error),
}

impl Untaken {
    fn told(self) -> ApiError {
        match self {
            Self::Here(error) => error,
            Self::There(error) => {
                ApiError::unavailable(format!("the archive did not come to its end: {error}")).hint("export it again")
            }
        }
    }
}

impl Target {
    fn of(file: Option<String>, image: &str, format: Format) -> Result<Self, ApiError> {
        let refused = |why: &str, hint: &str| Err(ApiError::invalid_argument(why).hint(hint));
        if file.as_deref() == Some("-") {
            if io::stdout().is_terminal() {
                return refused("an archive is nothing for a terminal", "name a file, or lead standard output to one");
            }
            if format == Format::Json {
                return refused("standard output holds the archive, or what is known of it as JSON", "name a file");
            }
            return Ok(Self::Output);
        }
        let path = PathBuf::from(file.unwrap_or_else(|| format!("{}.oci.tar", image.replace(['/', ':'], "-"))));
        if path.is_dir() {
            return refused(&format!("{} is a directory", path.display()), "name a file");
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let made = tempfile::Builder::new().prefix(".warren-export-").tempfile_in(dir);
        let file = made.map_err(|error| unwritten(&path, &error))?;
        Ok(Self::File(path, file))
    }

    async fn take(self, stream: ByteStream) -> Result<(Self, u64), Untaken> {
        match self {
            Self::Output => {
                let length = taken(stream, tokio::io::stdout(), Path::new("standard output")).await?;
                Ok((Self::Output, length))
            }
            Self::File(path, file) => {
                let into = file.reopen().map_err(|error| Untaken::Here(unwritten(&path, &error)))?;
                let length = taken(stream, tokio::fs::File::from_std(into), &path).await?;
                Ok((Self::File(path, file), length))
            }
        }
    }

    /// Brings a file that is whole to its place, which it tells.
    fn keep(self) -> Result<Option<PathBuf>, ApiError> {
        let Self::File(path, file) = self else { return Ok(None) };
        let synced = file.as_file().sync_all();
        synced.map_err(|error| unwritten(&path, &error))?;
        file.persist(&path).map_err(|error| unwritten(&path, &error.error))?;
        Ok(Some(path))
    }
}

fn unwritten(path: &Path, error: &io::Error) -> ApiError {
    ApiError::failed_precondition(format!("{} cannot be written: {error}", path.display()))
}

/// Takes all that comes; gives how much.
async fn taken(mut stream: ByteStream, mut into: impl AsyncWrite + Unpin, path: &Path) -> Result<u64, Untaken> {
    let here = |error: io::Error| Untaken::Here(unwritten(path, &error));
    let (mut length, mut piece) = (0, vec![0; PIECE]);
    loop {
        let count = stream.read(&mut piece).await.map_err(Untaken::There)?;
        if count == 0 {
            break;
        }
        into.write_all(&piece[..count]).await.map_err(here)?;
        length += count as u64;
    }
    into.flush().await.map_err(here)?;
    let told = stream.shutdown().await;
    stream.closed().await;
    tracing::debug!(?told, "the archive was taken");
    Ok(length)
}

//! `warren cp`: files into a VM, out of it, or from one to another, as tar archives over the bus.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use archive::{Owner, Place, pipe};
use bus::ByteStream;
use bytes::{Bytes, BytesMut};
use contract::{
    ApiError,
    frame::{Exit, Frame},
    workspace::{PackFiles, SessionKind, UnpackFiles},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf},
    sync::{mpsc, oneshot},
};

use crate::{
    args::{CpArgs, Global},
    client::Client,
    failure::{Failure, Outcome},
    output,
};

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// Standard input or output, as a tar archive.
    Archive,
    /// A path here.
    Here(PathBuf),
    /// A path in a VM.
    There { vm: String, path: String },
}

impl End {
    /// As scp reads it: a colon before any slash ends a VM's name.
    fn parse(text: &str) -> Self {
        match text.split_once(':') {
            _ if text == "-" => Self::Archive,
            Some((vm, path)) if !vm.is_empty() && !vm.contains('/') => {
                Self::There { vm: vm.to_owned(), path: path.to_owned() }
            }
            _ => Self::Here(text.into()),
        }
    }
}

/// Copies.
///
/// # Errors
/// Neither end is in a VM, something is not there, or the copy was cut off.
pub async fn run(global: &Global, args: CpArgs) -> Result<Outcome, Failure> {
    let client = || Client::connect(global);
    let (source, target) = (End::parse(&args.source), End::parse(&args.target));
    check(&args, &source, &target)?;
    match (source, target) {
        (End::There { vm, path }, target) => {
            let client = client().await?;
            let contents = is_contents(&path);
            let pack = PackFiles { path: absolute(&path)?, follow: args.follow, contents };
            match target {
                End::There { vm: other, path } => {
                    // Opened first: what cannot be written is not read.
                    let there = client.open(&other, SessionKind::Unpack(unpack(&args, &path, contents)?)).await?;
                    let here = client.open(&vm, SessionKind::Pack(pack)).await?;
                    relay(here, there).await?;
                }
                End::Archive => {
                    let stream = client.open(&vm, SessionKind::Pack(pack)).await?;
                    download(stream, |reader, _| io::copy(&mut { reader }, &mut io::stdout().lock()).map(drop)).await?;
                }
                End::Here(path) => {
                    let place = place(&path, contents, args.archive)?;
                    let stream = client.open(&vm, SessionKind::Pack(pack)).await?;
                    download(stream, move |reader, whole| place.unpack(reader, whole)).await?;
                }
            }
        }
        (source, End::There { vm, path }) => {
            let contents = source == End::Archive || is_contents(&args.source);
            if let End::Here(path) = &source {
                std::fs::symlink_metadata(path).map_err(|error| {
                    ApiError::invalid_argument(format!("{} cannot be read: {error}", path.display()))
                })?;
            }
            let kind = SessionKind::Unpack(unpack(&args, &path, contents)?);
            upload(client().await?.open(&vm, kind).await?, source, args.follow).await?;
        }
        _ => {
            return Err(ApiError::invalid_argument("neither end of the copy is in a VM")
                .hint("write VM:PATH for one of them, like web:/etc/hostname")
                .into());
        }
    }
    Ok(Outcome::Done)
}

/// Refuses options that say nothing about such ends.
fn check(args: &CpArgs, source: &End, target: &End) -> Result<(), ApiError> {
    let refuse = |what: &str, hint: &str| {
        let message = format!("{what} does not go with a copy from {} to {}", args.source, args.target);
        Err(ApiError::invalid_argument(message).hint(hint))
    };
    if args.owner.is_some() && !matches!(target, End::There { .. }) {
        return refuse("--owner", "it names a user of the VM that is copied into; files that come here are your own");
    }
    if args.follow && *source == End::Archive {
        return refuse("--follow", "an archive holds links as they are: follow them where it is made");
    }
    if args.archive && *target == End::Archive {
        return refuse("--archive", "an archive has the owners anyway: keep them where it is unpacked");
    }
    Ok(())
}

/// Whether a directory's mere contents are meant.
fn is_contents(path: &str) -> bool {
    path.ends_with("/.") || path == "."
}

/// A path in a VM; those that do not begin at its root begin at root's home.
fn absolute(path: &str) -> Result<String, ApiError> {
    if path.is_empty() {
        return Err(ApiError::invalid_argument("the path in the VM is empty").hint("write VM:PATH, like web:/tmp/"));
    }
    let path = path.strip_suffix("/.").map_or(path, |dir| if dir.is_empty() { "/" } else { dir });
    Ok(if path.starts_with('/') { path.to_owned() } else { format!("/root/{path}") })
}

fn unpack(args: &CpArgs, path: &str, contents: bool) -> Result<UnpackFiles, ApiError> {
    let owner = match (&args.owner, args.archive) {
        (Some(owner), _) => Some(owner.clone()),
        (None, true) => None,
        (None, false) => Some("0:0".to_owned()),
    };
    Ok(UnpackFiles { path: absolute(path)?, owner, contents })
}

fn place(path: &Path, contents: bool, archived: bool) -> Result<Place, ApiError> {
    let whole = std::path::absolute(path).map_err(|error| ApiError::invalid_argument(error.to_string()))?;
    let mut text = whole.to_string_lossy().into_owned();
    if path.as_os_str().as_encoded_bytes().ends_with(b"/") && !text.ends_with('/') {
        text.push('/');
    }
    let owner = if archived { Owner::Archived } else { Owner::Own };
    Place::find(&text, contents, owner).map_err(|error| ApiError::invalid_argument(error.to_string()))
}

/// Sends an archive of what is here, or the one on standard input.
async fn upload(stream: ByteStream, source: End, follow: bool) -> Result<(), Failure> {
    let (writer, mut pieces) = pipe::outward();
    let packing = tokio::task::spawn_blocking(move || match source {
        End::Here(path) => {
            let contents = is_contents(&path.to_string_lossy());
            archive::pack(&path, contents, follow, writer)
        }
        _ => {
            let mut writer = writer;
            io::copy(&mut io::stdin().lock(), &mut writer)?;
            writer.flush()?;
            Ok(Vec::new())
        }
    });
    let (reader, mut sink) = tokio::io::split(stream);
    let sending = async {
        let mut frames = BytesMut::new();
        while let Some(piece) = pieces.recv().await {
            Frame::Stdin(piece).encode(&mut frames);
            sink.write_all(&frames).await?;
            frames.clear();
        }
        Ok::<_, io::Error>(())
    };
    let mut exit = std::pin::pin!(receive(reader, None));
    tokio::select! {
        sent = sending => match sent {
            Ok(()) => {}
            // What the VM said before it stopped reading is why.
            Err(error) => return ended(exit.await.map_err(|_| cut(&error))?),
        },
        early = &mut exit => return ended(early?),
    }
    let packed = packing.await.map_err(|error| ApiError::internal(format!("packing failed: {error}")))?;
    for warning in packed.map_err(|error| ApiError::invalid_argument(format!("it cannot be read: {error}")))? {
        output::note(&output::clean(&warning));
    }
    let mut end = BytesMut::new();
    Frame::Stdin(Bytes::new()).encode(&mut end);
    let finished = async {
        sink.write_all(&end).await?;
        sink.flush().await
    };
    finished.await.map_err(|error| cut(&error))?;
    ended(exit.await?)
}

/// Asked by whoever unpacks once all has been read: whether the VM has sent all.
type Whole = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// Takes an archive, which a thread makes something of.
async fn download(
    stream: ByteStream,
    take: impl FnOnce(pipe::Reader, Whole) -> io::Result<()> + Send + 'static,
) -> Result<(), Failure> {
    let (sender, reader) = pipe::inward();
    let (verdict, verdicts) = oneshot::channel::<bool>();
    let whole: Whole = Box::new(move || match verdicts.blocking_recv() {
        Ok(true) => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    });
    let mut taking = tokio::task::spawn_blocking(move || take(reader, whole));
    let (half, _sink) = tokio::io::split(stream);
    let exit = tokio::select! {
        exit = receive(half, Some(sender)) => exit,
        taken = &mut taking => {
            let taken = taken.map_err(|error| ApiError::internal(format!("unpacking failed: {error}")))?;
            let why = taken.err().map_or_else(|| "it ended early".to_owned(), |error| error.to_string());
            return Err(ApiError::failed_precondition(format!("the files cannot be written here: {why}")).into());
        }
    };
    // Told in any case, so that the thread ends.
    let told = verdict.send(exit.as_ref().is_ok_and(|exit| exit.code == 0));
    tracing::debug!(?told, "whether the copy is whole");
    let taken = taking.await.map_err(|error| ApiError::internal(format!("unpacking failed: {error}")))?;
    ended(exit?)?;
    taken.map_err(|error| ApiError::failed_precondition(format!("the files cannot be written here: {error}")).into())
}

/// Passes one VM's archive to another.
async fn relay(from: ByteStream, to: ByteStream) -> Result<(), Failure> {
    let (source, _sink) = tokio::io::split(from);
    let (answers, mut sink) = tokio::io::split(to);
    let (sender, mut pieces) = mpsc::channel::<Bytes>(4);
    let passing = async {
        let mut frames = BytesMut::new();
        // An empty piece is the end, and passed on as such; without one the other VM finds itself cut off.
        while let Some(piece) = pieces.recv().await {
            Frame::Stdin(piece).encode(&mut frames);
            sink.write_all(&frames).await?;
            frames.clear();
        }
        sink.flush().await
    };
    let (packed, passed) = tokio::join!(receive(source, Some(sender)), passing);
    ended(packed?)?;
    let unpacked = receive(answers, None).await;
    match passed {
        Ok(()) => ended(unpacked?),
        Err(error) => ended(unpacked.map_err(|_| cut(&error))?),
    }
}

/// Reads frames until the exit: output goes to `pieces`, with an empty one after a good end; warnings to people.
async fn receive(mut reader: ReadHalf<ByteStream>, pieces: Option<mpsc::Sender<Bytes>>) -> Result<Exit, ApiError> {
    let mut buffer = BytesMut::with_capacity(64 * 1024);
    loop {
        match Frame::decode(&mut buffer) {
            Ok(Some(Frame::Stdout(bytes))) => {
                if let Some(pieces) = pieces.as_ref().filter(|_| !bytes.is_empty()) {
                    pieces.send(bytes).await.map_err(|_| ApiError::internal("nobody takes the files any more"))?;
                }
            }
            Ok(Some(Frame::Stderr(bytes))) => output::note(&output::clean(String::from_utf8_lossy(&bytes).trim_end())),
            Ok(Some(Frame::Exit(exit))) => {
                if let Some(pieces) = pieces.filter(|_| exit.code == 0) {
                    // Whoever has read all it wants has gone already.
                    drop(pieces.send(Bytes::new()).await);
                }
                return Ok(exit);
            }
            Ok(Some(_)) => return Err(ApiError::internal("the guest sent a frame only clients send")),
            Err(error) => return Err(ApiError::internal(format!("the guest sent what cannot be read: {error}"))),
            Ok(None) => match reader.read_buf(&mut buffer).await {
                Ok(0) => return Err(cut(&io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(cut(&error)),
            },
        }
    }
}

fn cut(error: &io::Error) -> ApiError {
    ApiError::unavailable(format!("the copy was cut off: {error}")).hint("does the VM still run? Copy again")
}

fn ended(exit: Exit) -> Result<(), Failure> {
    match exit {
        Exit { code: 0, .. } => Ok(()),
        Exit { message, .. } => {
            let why = message.unwrap_or_else(|| "it did not say why".to_owned());
            Err(ApiError::failed_precondition(format!("the VM could not copy: {}", output::clean(&why))).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart_as_scp_does() {
        let there = |vm: &str, path: &str| End::There { vm: vm.into(), path: path.into() };
        assert_eq!(End::parse("web:/etc"), there("web", "/etc"));
        assert_eq!(End::parse("./a:b"), End::Here("./a:b".into()));
        assert_eq!(End::parse("/a:b"), End::Here("/a:b".into()));
        assert_eq!(End::parse("-"), End::Archive);
        assert_eq!(absolute("x/.").unwrap(), "/root/x");
        assert_eq!((absolute("/.").unwrap(), absolute("/etc/").unwrap()), ("/".to_owned(), "/etc/".to_owned()));
        assert!(absolute("").is_err());
    }
}

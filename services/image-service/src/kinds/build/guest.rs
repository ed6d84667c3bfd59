//! What a step does in its VM's **guest**: files put there, programs run, streams opened, all over the host-agent of the VM.

use std::{io, time::Duration};

use async_nats::jetstream::object_store::Object;
use bus::{Bus, ByteStream};
use bytes::{Bytes, BytesMut};
use contract::{
    ApiError, SessionId,
    agent::{GuestJobs, GuestOpen, OpenRequest},
    frame::{Exit, Frame},
    image::BuildFiles,
    job::{AskRequest, Job, JobAsk},
    workspace::{Command, SessionKind, UnpackFiles},
};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::vm::Machine;
use crate::domain::build;

/// How much of an archive is read at once, in bytes.
const PIECE: usize = 32 * 1024;
/// How long a small program of a step's own may take.
const PROGRAM: Duration = Duration::from_secs(60);

/// A stream of frames to a guest.
pub struct Frames {
    stream: ByteStream,
    buffer: BytesMut,
}

impl Frames {
    /// Opens one.
    ///
    /// # Errors
    /// The host or the guest cannot be reached, or refuses.
    pub async fn open(bus: &Bus, machine: &Machine, kind: SessionKind) -> Result<Self, ApiError> {
        let session = SessionId::new();
        let stream = ByteStream::open(bus, session).await?;
        let request = OpenRequest { vm: machine.id, session, kind, direct: false };
        bus.command::<GuestOpen>(&machine.host, &request).await?;
        Ok(Self { stream, buffer: BytesMut::new() })
    }

    /// The next frame. May be left at any await and called again.
    ///
    /// # Errors
    /// The stream ended, or what came is no frame.
    pub async fn next(&mut self) -> Result<Frame, ApiError> {
        loop {
            let frame = Frame::decode(&mut self.buffer)
                .map_err(|error| ApiError::internal(format!("the guest sent what cannot be read: {error}")))?;
            if let Some(frame) = frame {
                return Ok(frame);
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(lost("its stream ended")),
                Ok(_) => {}
                Err(error) => return Err(lost(&error.to_string())),
            }
        }
    }

    async fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        let mut frame = BytesMut::new();
        Frame::Stdin(bytes).encode(&mut frame);
        self.stream.write_all(&frame).await
    }

    /// Reads to the end of what was asked for, with the warnings it gave.
    async fn exit(&mut self) -> Result<(Exit, String), ApiError> {
        let mut said = String::new();
        loop {
            match self.next().await? {
                Frame::Exit(exit) => return Ok((exit, said)),
                Frame::Stderr(bytes) if said.len() < PIECE => said.push_str(&String::from_utf8_lossy(&bytes)),
                Frame::Left(reason) => return Err(lost(&reason)),
                _ => {}
            }
        }
    }

    /// Ends it in good order.
    pub async fn close(mut self) {
        if let Err(error) = self.stream.shutdown().await {
            tracing::debug!(%error, "the stream was closed already");
        }
    }
}

fn lost(reason: &str) -> ApiError {
    ApiError::unavailable(format!("the guest was lost: {reason}"))
}

/// Asks for the guest's jobs, or something of them.
///
/// # Errors
/// The host or the guest cannot be reached, or refuses.
pub async fn jobs(bus: &Bus, machine: &Machine, ask: JobAsk) -> Result<Vec<Job>, ApiError> {
    Ok(bus.command::<GuestJobs>(&machine.host, &AskRequest { vm: machine.id, ask }).await?.jobs)
}

/// Puts a step's files into the guest.
///
/// # Errors
/// They cannot be read, are not what the request says, or cannot be unpacked.
pub async fn put(bus: &Bus, machine: &Machine, files: &BuildFiles) -> Result<(), ApiError> {
    match files {
        BuildFiles::Inline(text) => {
            let bytes = build::decoded(text)?;
            unpack(bus, machine, &mut &bytes[..], None).await
        }
        BuildFiles::Object { object, sha256 } => {
            let mut found = find(bus, object).await?;
            unpack(bus, machine, &mut found, Some(sha256)).await
        }
    }
}

async fn find(bus: &Bus, object: &str) -> Result<Object, ApiError> {
    use async_nats::jetstream::object_store::GetErrorKind;
    let absent = || {
        ApiError::failed_precondition(format!("there is no object {object} any more"))
            .hint("it has to stay until the build has ended; `nats object ls BUCKET` lists what is there")
    };
    let (bucket, name) = object.split_once('/').ok_or_else(absent)?;
    let store = bus.jetstream().get_object_store(bucket).await.map_err(|error| {
        tracing::debug!(%error, bucket, "an object store was not found");
        absent()
    })?;
    store.get(name).await.map_err(|error| match error.kind() {
        GetErrorKind::NotFound => absent(),
        _ => ApiError::unavailable(format!("the object {object} cannot be read: {error}")),
    })
}

/// Unpacks an archive at the guest's root. Its end is sent only once it was as the digest says.
async fn unpack(
    bus: &Bus,
    machine: &Machine,
    archive: &mut (impl AsyncRead + Unpin),
    sha256: Option<&str>,
) -> Result<(), ApiError> {
    let place = UnpackFiles { path: "/".to_owned(), owner: None, contents: true };
    let mut frames = Frames::open(bus, machine, SessionKind::Unpack(place)).await?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    let cut = |error: io::Error| lost(&error.to_string());
    loop {
        let count = archive
            .read(&mut piece)
            .await
            .map_err(|error| ApiError::unavailable(format!("the files of the step cannot be read: {error}")))?;
        if count == 0 {
            break;
        }
        hash.update(&piece[..count]);
        if let Err(error) = frames.send(Bytes::copy_from_slice(&piece[..count])).await {
            // What the guest said before it stopped reading is why.
            return unpacked(frames.exit().await.map_err(|_| cut(error))?);
        }
    }
    let found = hex::encode(hash.finalize());
    if let Some(wanted) = sha256.filter(|wanted| **wanted != found) {
        let message = format!("the files of the step have the digest {found}, not {wanted}");
        return Err(
            ApiError::failed_precondition(message).hint("the object was written to anew: build with its digest")
        );
    }
    frames.send(Bytes::new()).await.map_err(cut)?;
    frames.stream.flush().await.map_err(cut)?;
    let exit = frames.exit().await?;
    frames.close().await;
    unpacked(exit)
}

fn unpacked((exit, _): (Exit, String)) -> Result<(), ApiError> {
    if exit.code == 0 {
        return Ok(());
    }
    let why = exit.message.unwrap_or_else(|| "it does not say why".to_owned());
    Err(ApiError::failed_precondition(format!("the guest cannot unpack the files of the step: {why}"))
        .hint("the archive has to fit the disk (`--disk`), and its entries lead nowhere else"))
}

/// Puts a small archive of Warren's own into the guest.
///
/// # Errors
/// It cannot be unpacked.
pub async fn put_own(bus: &Bus, machine: &Machine, archive: &[u8]) -> Result<(), ApiError> {
    unpack(bus, machine, &mut &archive[..], None).await
}

/// Runs a small program to its end.
///
/// # Errors
/// It failed, or could not be run.
pub async fn run(bus: &Bus, machine: &Machine, argv: &[&str]) -> Result<(), ApiError> {
    let command = Command {
        argv: argv.iter().map(|&word| word.to_owned()).collect(),
        cwd: Some("/".to_owned()),
        timeout_ms: u64::try_from(PROGRAM.as_millis()).ok(),
        ..Command::default()
    };
    let mut frames = Frames::open(bus, machine, SessionKind::Exec(command)).await?;
    let (exit, said) = frames.exit().await?;
    frames.close().await;
    if exit.code == 0 {
        return Ok(());
    }
    let why = exit.message.unwrap_or_else(|| said.trim().to_owned());
    Err(ApiError::failed_precondition(format!("`{}` failed in the VM ({}): {why}", argv.join(" "), exit.code)))
}

//! **Carrying** a kernel's files, over a byte stream or in a bundle, as one archive: `boot/vmlinuz` and `lib/modules/<release>/…`, as a package has them, so
//! that who receives it takes it like any other offer, and trusts it no more.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    sync::Arc,
};

use bus::{Bus, ByteStream};
use contract::{ApiError, SessionId, agent::StagedKernel};
use tokio::{io::AsyncWriteExt, runtime::Handle};

use super::{
    objects::off_the_runtime,
    offer::Limits,
    staging::{RESERVE, Staging, Watched, storage_error},
};
use crate::{
    files,
    upload::{self, Bounds, Incoming, Upload, UploadError},
};

/// As fast as a network is: the receiver unpacks it once and keeps it unpacked.
const COMPRESSION: i32 = 1;

/// A byte stream as a thread writes it.
struct Outgoing {
    stream: ByteStream,
    runtime: Handle,
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.runtime.block_on(self.stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.runtime.block_on(self.stream.flush())
    }
}

/// Writes a kernel's files as the archive they are carried in: the same files as the same bytes. Blocking.
///
/// # Errors
/// A file cannot be read, or the archive not be written.
pub(super) fn pack<W: Write>(
    to: W,
    image: &Path,
    modules_dir: &Path,
    modules: &[String],
    release: &str,
) -> io::Result<W> {
    let mut archive = tar::Builder::new(zstd::Encoder::new(to, COMPRESSION)?);
    append(&mut archive, "boot/vmlinuz", image)?;
    for path in modules {
        append(&mut archive, &format!("lib/modules/{release}/{path}"), &modules_dir.join(path))?;
    }
    archive.into_inner()?.finish()
}

/// Sends a kernel's files; returns once the receiver has them or is gone. Blocking, within a runtime.
///
/// # Errors
/// A file cannot be read, or the receiver took it not.
pub(super) fn send(
    stream: ByteStream,
    image: &Path,
    modules_dir: &Path,
    modules: &[String],
    release: &str,
) -> io::Result<()> {
    let runtime = Handle::current();
    let outgoing = Outgoing { stream, runtime: runtime.clone() };
    let mut stream = pack(outgoing, image, modules_dir, modules, release)?.stream;
    runtime.block_on(async {
        stream.shutdown().await?;
        // What the receiver says beside its end: nothing, or a reset with its reason.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        stream.closed().await;
        Ok(())
    })
}

/// Stages what a client uploads; where that breaks off it goes on.
///
/// # Errors
/// It did not come, is no kernel, or the disk is full.
pub(super) async fn uploaded(bus: &Bus, session: SessionId, staging: Staging) -> Result<StagedKernel, ApiError> {
    staging.high_water.check()?;
    let (dir, reins) = (staging.dir.clone(), staging.reins.clone());
    let fresh = dir.clone();
    off_the_runtime(move || upload::fresh(&fresh).map_err(|error| storage_error(&fresh, &error))).await?;
    let most = Limits::default().bytes;
    let bounds = Bounds { most, reserve: RESERVE, patience: upload::PATIENCE, plain: true };
    let (cancel, count) = (reins.cancel.clone(), Arc::new(move |bytes| reins.add(bytes)));
    let coming = Upload { bus: bus.clone(), session, dir: dir.clone(), bounds, count, cancel };
    match coming.take().await {
        Ok(()) => off_the_runtime(move || staging.run_upload()).await,
        Err(error) => {
            off_the_runtime(move || files::remove_dir(&dir).map_err(|error| storage_error(&dir, &error))).await?;
            Err(match &error {
                UploadError::Disk(disk) => storage_error(&staging.dir, disk),
                _ => error.into(),
            })
        }
    }
}

/// Stages what another host sends; it is unpacked as it comes.
///
/// # Errors
/// It did not come whole, is another kernel, or the disk is full.
pub(super) async fn receive(bus: &Bus, session: SessionId, staging: Staging) -> Result<StagedKernel, ApiError> {
    let mut incoming = Incoming::new(ByteStream::accept(bus, session).await?, staging.reins.cancel.clone());
    let (outcome, mut stream) = off_the_runtime(move || {
        let outcome = staging.run_from(Watched { from: &mut incoming, reins: &staging.reins });
        Ok((outcome, incoming.into_inner()))
    })
    .await?;
    match &outcome {
        Ok(_) => {
            let shut = stream.shutdown().await;
            tracing::debug!(?shut, "a kernel was taken from a stream");
        }
        // The sender is told beside: the stream of one that is gone must not hold the outcome back.
        Err(error) => drop(tokio::spawn(stream.reset(error.message.clone()))),
    }
    outcome
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let mut header = tar::Header::new_gnu();
    header.set_size(file.metadata()?.len());
    header.set_mode(0o644);
    archive.append_data(&mut header, name, file)
}

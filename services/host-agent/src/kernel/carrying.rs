//! **Carrying** a kernel's files, over a byte stream or in a bundle, as one archive: `boot/vmlinuz` and `lib/modules/<release>/…`, as a package has them, so
//! that who receives it takes it like any other offer, and trusts it no more.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use bus::ByteStream;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Handle,
};

use crate::tasks::Reins;

/// As fast as a network is: the receiver unpacks it once and keeps it unpacked.
const COMPRESSION: i32 = 1;

/// The most bytes read after an archive's end: tar pads it to blocks of at most this.
const REST_MAX: u64 = 1 << 20;

/// A byte stream as a thread reads it; ends with an error when the task is to end.
pub(super) struct Incoming {
    stream: ByteStream,
    reins: Reins,
    runtime: Handle,
}

impl Incoming {
    /// To be made on the runtime, and read off it.
    pub fn new(stream: ByteStream, reins: Reins) -> Self {
        Self { stream, reins, runtime: Handle::current() }
    }

    /// Tells the sender how it ended: that all is well, or why not.
    pub async fn settle(mut self, outcome: Result<(), String>) {
        match outcome {
            // Read to its end, or the sender's last words would be lost on a reset.
            Ok(()) => {
                let rest = tokio::io::copy(&mut (&mut self.stream).take(REST_MAX), &mut tokio::io::sink()).await;
                let shut = self.stream.shutdown().await;
                tracing::debug!(?rest, ?shut, "a kernel was taken from a stream");
            }
            Err(reason) => self.stream.reset(reason).await,
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (stream, reins) = (&mut self.stream, &self.reins);
        let read = self.runtime.block_on(async {
            tokio::select! {
                read = stream.read(buffer) => read,
                () = reins.cancel.cancelled() => Err(io::Error::other("told to end")),
            }
        })?;
        self.reins.add(read as u64);
        Ok(read)
    }
}

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

fn append(archive: &mut tar::Builder<impl Write>, name: &str, path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let mut header = tar::Header::new_gnu();
    header.set_size(file.metadata()?.len());
    header.set_mode(0o644);
    archive.append_data(&mut header, name, file)
}

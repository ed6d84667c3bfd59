//! The virtio-serial port that is the channel, on the guest's side.
//!
//! While the host's side is closed the port polls as hung up and reads 0 bytes; there is no event that a
//! descriptor registered with epoll could tell from the next one, so it is looked at now and then until it opens.

use std::{
    fs, io,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use contract::guest::PORT;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, unix::AsyncFd};

use super::{Shared, channel::Channel, mux};

/// How often a port whose host is away is looked at.
const AWAY: Duration = Duration::from_millis(25);
/// How much of what is no yamux ends any conversation of an earlier agent: the rest of one frame's data, of which yamux sends
/// 16 KiB at the most, and two headers.
const INTERRUPTION: usize = 16 * 1024 + 2 * 12;
/// How long a host may take to read it.
const INTERRUPTION_WAIT: Duration = Duration::from_secs(2);

/// The open port.
pub struct Port {
    file: Arc<fs::File>,
    /// The host, if one is there, has been told that a new agent has begun.
    begun: bool,
}

impl Port {
    /// Finds the port by its name and opens it.
    ///
    /// # Errors
    /// There is none, or somebody else has it open.
    pub fn open() -> io::Result<Self> {
        let path = find()?;
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)?;
        Ok(Self { file: Arc::new(file), begun: false })
    }

    /// An earlier agent of this VM may have been killed, of which its host sees nothing: the port's other end stays open, and
    /// its sessions would wait for ever. Bytes that cannot be yamux end that conversation, and a host that waits for the
    /// echo of its preamble drops them.
    async fn begin(&mut self, port: &mut Connected) {
        if !std::mem::replace(&mut self.begun, true) {
            let interruption = vec![0xff; INTERRUPTION];
            let told = tokio::time::timeout(INTERRUPTION_WAIT, port.write_all(&interruption)).await;
            tracing::debug!(?told, "told the host that an agent begins");
        }
    }

    /// Serves one host after the other, until the port itself fails.
    pub async fn serve(&mut self, shared: &Arc<Shared>) {
        loop {
            match host_is_there(&self.file) {
                Ok(true) => {}
                Ok(false) => {
                    tokio::time::sleep(AWAY).await;
                    continue;
                }
                Err(error) => return tracing::error!("the channel's port failed: {error}"),
            }
            // Registered anew each time: tokio keeps a hang-up it has seen for the registration's life.
            let mut port = match Connected::new(Arc::clone(&self.file)) {
                Ok(port) => port,
                Err(error) => return tracing::error!("the channel's port cannot be waited for: {error}"),
            };
            self.begin(&mut port).await;
            let mut channel = Channel::new(port);
            while let Ok(()) = mux::serve(&mut channel, shared).await {}
            tokio::time::sleep(AWAY).await;
        }
    }
}

fn host_is_there(port: &fs::File) -> io::Result<bool> {
    let mut polled = [PollFd::new(port.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO)?;
    let events = polled[0].revents().unwrap_or(PollFlags::empty());
    if events.contains(PollFlags::POLLNVAL) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    Ok(!events.contains(PollFlags::POLLHUP))
}

/// Looks through sysfs, which unlike `/dev/virtio-ports` needs no udev.
fn find() -> io::Result<PathBuf> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim_end() == PORT) {
            return Ok(PathBuf::from("/dev").join(entry.file_name()));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("the VM has no virtio-serial port named {PORT}")))
}

/// The port while a host is there.
struct Connected {
    port: Arc<fs::File>,
    /// Absent only while it is made anew.
    registered: Option<AsyncFd<Arc<fs::File>>>,
}

impl Connected {
    fn new(port: Arc<fs::File>) -> io::Result<Self> {
        let mut connected = Self { port, registered: None };
        connected.register()?;
        Ok(connected)
    }

    fn register(&mut self) -> io::Result<()> {
        // The old one goes first: epoll takes a descriptor once.
        drop(self.registered.take());
        // SAFETY: an `Arc<File>` keeps the same descriptor open for as long as the registration has it.
        self.registered = Some(unsafe { AsyncFd::register(Arc::clone(&self.port)) }?);
        Ok(())
    }

    fn registered(&self) -> io::Result<&AsyncFd<Arc<fs::File>>> {
        self.registered.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// The port had hung up and is open again: another host came before the end of the last one was read. As tokio keeps a hang-up,
    /// the port would count as ready for ever and be asked without a pause.
    fn renew(&mut self, context: &Context<'_>) -> io::Result<()> {
        self.register()?;
        // Whatever else this task waits for at the port is to be asked for anew, too.
        context.waker().wake_by_ref();
        Ok(())
    }
}

impl AsyncRead for Connected {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let mut ready = ready!(this.registered()?.poll_read_ready(context))?;
            let hung_up = ready.ready().is_read_closed();
            match ready.try_io(|port| io::Read::read(&mut &**port.get_ref(), buffer.initialize_unfilled())) {
                Ok(outcome) => return Poll::Ready(outcome.map(|length| buffer.advance(length))),
                Err(_would_block) if hung_up => this.renew(context)?,
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Connected {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            let mut ready = ready!(this.registered()?.poll_write_ready(context))?;
            let hung_up = ready.ready().is_write_closed();
            match ready.try_io(|port| io::Write::write(&mut &**port.get_ref(), bytes)) {
                Ok(outcome) => return Poll::Ready(outcome),
                // A reader reads the end of a host that is away; a writer is told.
                Err(_would_block) if hung_up && !host_is_there(&this.port)? => {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
                Err(_would_block) if hung_up => this.renew(context)?,
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

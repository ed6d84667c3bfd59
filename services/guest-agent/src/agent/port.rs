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
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd};

use super::{Shared, channel::Channel, mux};

/// How often a port whose host is away is looked at.
const AWAY: Duration = Duration::from_millis(25);

/// The open port.
pub struct Port(Arc<fs::File>);

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
        Ok(Self(Arc::new(file)))
    }

    /// Serves one host after the other, until the port itself fails.
    pub async fn serve(&mut self, shared: &Arc<Shared>) {
        loop {
            match self.host_is_there() {
                Ok(true) => {}
                Ok(false) => {
                    tokio::time::sleep(AWAY).await;
                    continue;
                }
                Err(error) => return tracing::error!("the channel's port failed: {error}"),
            }
            // Registered anew each time: tokio keeps a hang-up it has seen for the registration's life.
            // SAFETY: an `Arc<File>` keeps the same descriptor open for as long as the registration has it.
            let mut channel = match unsafe { AsyncFd::register(Arc::clone(&self.0)) } {
                Ok(port) => Channel::new(Connected(port)),
                Err(error) => return tracing::error!("the channel's port cannot be waited for: {error}"),
            };
            while let Ok(()) = mux::serve(&mut channel, shared).await {}
            tokio::time::sleep(AWAY).await;
        }
    }

    fn host_is_there(&self) -> io::Result<bool> {
        let mut polled = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO)?;
        let events = polled[0].revents().unwrap_or(PollFlags::empty());
        if events.contains(PollFlags::POLLNVAL) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(!events.contains(PollFlags::POLLHUP))
    }
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
struct Connected(AsyncFd<Arc<fs::File>>);

impl AsyncRead for Connected {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            match ready.try_io(|port| io::Read::read(&mut &**port.get_ref(), buffer.initialize_unfilled())) {
                Ok(outcome) => return Poll::Ready(outcome.map(|length| buffer.advance(length))),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Connected {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(context))?;
            match ready.try_io(|port| io::Write::write(&mut &**port.get_ref(), bytes)) {
                Ok(outcome) => return Poll::Ready(outcome),
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

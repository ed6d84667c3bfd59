//! A pseudo-terminal: the agent holds its master side, a process has its slave side.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use contract::workspace::TerminalSize;
use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    pty::{OpenptyResult, Winsize, openpty},
    sys::termios::Termios,
    unistd::Pid,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd};

/// The master side. Clones are the same terminal.
#[derive(Clone, Debug)]
pub struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    /// Opens a terminal of that size; `adjust` may change its modes. Returns the slave side too.
    ///
    /// # Errors
    /// There is no devpts or no terminal left.
    pub fn open(size: TerminalSize, adjust: impl FnOnce(&mut Termios)) -> io::Result<(Self, OwnedFd)> {
        let OpenptyResult { master, slave } = openpty(&winsize(size), None)?;
        for end in [&master, &slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_RDWR))?;
        let mut modes = nix::sys::termios::tcgetattr(&slave)?;
        adjust(&mut modes);
        nix::sys::termios::tcsetattr(&slave, nix::sys::termios::SetArg::TCSANOW, &modes)?;
        // SAFETY: an `OwnedFd` keeps the same descriptor open for as long as the registration has it.
        let master = unsafe { AsyncFd::register(master) }?;
        Ok((Self(Arc::new(master)), slave))
    }

    /// Tells the terminal, and through SIGWINCH its processes, a new size.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        // SAFETY: the ioctl reads a winsize, which lives until it returns.
        let outcome = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TIOCSWINSZ, &winsize(size)) };
        nix::errno::Errno::result(outcome).map(drop).map_err(io::Error::from)
    }

    /// The process group in the terminal's foreground.
    pub fn foreground(&self) -> Option<Pid> {
        nix::unistd::tcgetpgrp(self.0.get_ref()).ok().filter(|group| group.as_raw() > 0)
    }
}

impl AsRawFd for Terminal {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn winsize(size: TerminalSize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            let read = ready.try_io(|fd| {
                nix::unistd::read(fd.get_ref().as_fd(), buffer.initialize_unfilled()).map_err(io::Error::from)
            });
            match read {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // That is how a terminal says that nobody has its slave side open any more.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(context))?;
            match ready.try_io(|fd| nix::unistd::write(fd.get_ref().as_fd(), bytes).map_err(io::Error::from)) {
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

/// A copy of the slave side for one more standard stream.
pub(super) fn duplicate(slave: &OwnedFd) -> io::Result<std::process::Stdio> {
    slave.try_clone().map(std::process::Stdio::from)
}

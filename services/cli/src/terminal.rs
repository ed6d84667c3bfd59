//! The user's terminal: its size, and raw mode that is always left again.

use std::io;

use contract::workspace::TerminalSize;
use nix::sys::termios::{self, SetArg, Termios};

/// Raw mode of standard input; dropping it restores what was before.
#[derive(Debug)]
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Enters raw mode.
    ///
    /// # Errors
    /// Standard input is no terminal.
    pub fn enter() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to restore.
        if let Err(error) = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before) {
            tracing::debug!(%error, "the terminal could not be restored");
        }
    }
}

nix::ioctl_read_bad!(window_size, nix::libc::TIOCGWINSZ, nix::libc::winsize);

/// The size of the terminal on standard output, or else standard input.
pub fn size() -> Option<TerminalSize> {
    [nix::libc::STDOUT_FILENO, nix::libc::STDIN_FILENO].into_iter().find_map(|fd| {
        let mut size = nix::libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: `size` is a winsize, which is what TIOCGWINSZ fills, and lives through the call.
        let found = unsafe { window_size(fd, &raw mut size) };
        (found.is_ok() && size.ws_col > 0 && size.ws_row > 0)
            .then_some(TerminalSize { columns: size.ws_col, rows: size.ws_row })
    })
}

//! The whole terminal, for as long as something is shown on it: the alternate screen of xterm's control sequences, left again on
//! every way out.

use std::io;

use contract::ApiError;
use tokio::{
    io::{AsyncReadExt, Stdin},
    time::{Instant, sleep_until},
};

use crate::{
    failure::{Failure, Outcome},
    output,
    terminal::{self, RawMode},
};

/// Saves the screen, clears it and hides the cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// Shows the cursor and brings the screen back.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// Ctrl-C, which raw mode hands on as a byte.
const INTERRUPT: u8 = 3;

/// The terminal, taken.
pub struct Screen {
    _raw: RawMode,
    /// Kept: a read that is left is still under way in it, and has the next key.
    keys: Stdin,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// It cannot be switched, or standard output is closed.
    pub fn enter() -> Result<Self, Failure> {
        let failed = |error: io::Error| ApiError::internal(format!("the terminal cannot be used: {error}"));
        let raw = RawMode::enter().map_err(failed)?;
        let screen = Self { _raw: raw, keys: tokio::io::stdin() };
        output::text(ENTER)?;
        Ok(screen)
    }

    /// Shows these lines, as far as the terminal has room.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn draw(&mut self, lines: &[String]) -> Result<(), Failure> {
        let (columns, rows) = terminal::size().map_or((80, 24), |size| (size.columns.into(), size.rows.into()));
        output::text(&frame(lines, columns, rows))
    }

    /// Waits; what ends the command, when a key does.
    pub async fn until(&mut self, then: Instant) -> Option<Outcome> {
        let mut keys = [0; 16];
        loop {
            tokio::select! {
                () = sleep_until(then) => return None,
                read = self.keys.read(&mut keys) => match read {
                    // A terminal that is gone shows nothing to anybody.
                    Err(_) | Ok(0) => return Some(Outcome::Done),
                    Ok(count) if keys[..count].iter().any(|key| matches!(key, b'q' | b'Q' | &INTERRUPT)) => {
                        return Some(Outcome::Done);
                    }
                    Ok(_) => {}
                },
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Standard output may be gone; then there is nothing to bring back.
        drop(output::text(LEAVE));
    }
}

/// What is written for one picture: from the upper left corner, each line to its end, and nothing of the picture before.
fn frame(lines: &[String], columns: usize, rows: usize) -> String {
    let mut picture = "\x1b[H".to_owned();
    for (n, line) in lines.iter().take(rows).enumerate() {
        if n > 0 {
            picture.push_str("\r\n");
        }
        picture.extend(line.chars().take(columns));
        picture.push_str("\x1b[K");
    }
    picture.push_str("\x1b[J");
    picture
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_never_larger_than_the_terminal() {
        let lines = ["123456", "ab", "c"].map(str::to_owned);
        assert_eq!(frame(&lines, 4, 2), "\x1b[H1234\x1b[K\r\nab\x1b[K\x1b[J");
    }
}

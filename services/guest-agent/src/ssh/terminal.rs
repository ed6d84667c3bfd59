//! A client's wish for a terminal (RFC 4254 section 8).

use contract::workspace::TerminalSize;
use nix::sys::termios::{ControlFlags, InputFlags, LocalFlags, OutputFlags, SpecialCharacterIndices as Index, Termios};
use russh::Pty;

/// Says "no character" in the protocol.
const NO_CHARACTER: u32 = 255;

/// A terminal as a client wants it.
#[derive(Debug)]
pub struct Request {
    /// The kind of terminal, for `TERM`.
    pub term: String,
    /// Its size.
    pub size: TerminalSize,
    /// Its modes.
    pub modes: Vec<(Pty, u32)>,
}

/// A size, bounded to what a terminal can have.
pub fn size(columns: u32, rows: u32) -> TerminalSize {
    let bounded = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    TerminalSize { columns: bounded(columns), rows: bounded(rows) }
}

impl Request {
    /// Sets the modes it asks for; those unknown here stay as they are.
    pub fn apply(&self, modes: &mut Termios) {
        for (mode, value) in &self.modes {
            if let Some(index) = character(*mode) {
                modes.control_chars[index as usize] = if *value == NO_CHARACTER { 0 } else { *value as u8 };
                continue;
            }
            let on = *value != 0;
            if let Some(flag) = input_flag(*mode) {
                modes.input_flags.set(flag, on);
            } else if let Some(flag) = local_flag(*mode) {
                modes.local_flags.set(flag, on);
            } else if let Some(flag) = output_flag(*mode) {
                modes.output_flags.set(flag, on);
            } else if let Some(flag) = control_flag(*mode) {
                modes.control_flags.set(flag, on);
            }
        }
    }
}

fn character(mode: Pty) -> Option<Index> {
    Some(match mode {
        Pty::VINTR => Index::VINTR,
        Pty::VQUIT => Index::VQUIT,
        Pty::VERASE => Index::VERASE,
        Pty::VKILL => Index::VKILL,
        Pty::VEOF => Index::VEOF,
        Pty::VEOL => Index::VEOL,
        Pty::VEOL2 => Index::VEOL2,
        Pty::VSTART => Index::VSTART,
        Pty::VSTOP => Index::VSTOP,
        Pty::VSUSP => Index::VSUSP,
        Pty::VREPRINT => Index::VREPRINT,
        Pty::VWERASE => Index::VWERASE,
        Pty::VLNEXT => Index::VLNEXT,
        Pty::VDISCARD => Index::VDISCARD,
        _ => return None,
    })
}

fn input_flag(mode: Pty) -> Option<InputFlags> {
    Some(match mode {
        Pty::IGNPAR => InputFlags::IGNPAR,
        Pty::PARMRK => InputFlags::PARMRK,
        Pty::INPCK => InputFlags::INPCK,
        Pty::ISTRIP => InputFlags::ISTRIP,
        Pty::INLCR => InputFlags::INLCR,
        Pty::IGNCR => InputFlags::IGNCR,
        Pty::ICRNL => InputFlags::ICRNL,
        Pty::IXON => InputFlags::IXON,
        Pty::IXANY => InputFlags::IXANY,
        Pty::IXOFF => InputFlags::IXOFF,
        Pty::IMAXBEL => InputFlags::IMAXBEL,
        Pty::IUTF8 => InputFlags::IUTF8,
        _ => return None,
    })
}

fn local_flag(mode: Pty) -> Option<LocalFlags> {
    Some(match mode {
        Pty::ISIG => LocalFlags::ISIG,
        Pty::ICANON => LocalFlags::ICANON,
        Pty::ECHO => LocalFlags::ECHO,
        Pty::ECHOE => LocalFlags::ECHOE,
        Pty::ECHOK => LocalFlags::ECHOK,
        Pty::ECHONL => LocalFlags::ECHONL,
        Pty::NOFLSH => LocalFlags::NOFLSH,
        Pty::TOSTOP => LocalFlags::TOSTOP,
        Pty::IEXTEN => LocalFlags::IEXTEN,
        Pty::ECHOCTL => LocalFlags::ECHOCTL,
        Pty::ECHOKE => LocalFlags::ECHOKE,
        Pty::PENDIN => LocalFlags::PENDIN,
        _ => return None,
    })
}

fn output_flag(mode: Pty) -> Option<OutputFlags> {
    Some(match mode {
        Pty::OPOST => OutputFlags::OPOST,
        Pty::OLCUC => OutputFlags::OLCUC,
        Pty::ONLCR => OutputFlags::ONLCR,
        Pty::OCRNL => OutputFlags::OCRNL,
        Pty::ONOCR => OutputFlags::ONOCR,
        Pty::ONLRET => OutputFlags::ONLRET,
        _ => return None,
    })
}

fn control_flag(mode: Pty) -> Option<ControlFlags> {
    Some(match mode {
        Pty::PARENB => ControlFlags::PARENB,
        Pty::PARODD => ControlFlags::PARODD,
        _ => return None,
    })
}

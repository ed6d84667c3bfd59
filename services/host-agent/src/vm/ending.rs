//! How a VMM ended, judged from what is known.

use std::{
    fs::OpenOptions,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use crate::{
    handles::Ended,
    vmm::{jail::open_untrusted, process::Exit},
};

/// How much of the console a failure carries, in bytes.
const TAIL: u64 = 4096;

/// Whether an end was clean: asked for, or the guest's own power-off after it was ready. QEMU ends with 0 when a guest
/// panics too, so the console decides.
pub(super) fn judge(exit: Exit, stop_wanted: bool, was_ready: bool, tail: String) -> Ended {
    let clean = |reason: &str| Ended { clean: true, reason: reason.to_owned(), console_tail: None };
    if stop_wanted {
        return clean("stopped");
    }
    let panicked = tail.contains("Kernel panic");
    let powered_down = tail.contains("reboot: Power down");
    let reason = match exit {
        _ if panicked => "the guest's kernel panicked".to_owned(),
        Exit::Code(0) if was_ready => return clean("the guest powered off"),
        Exit::Unknown | Exit::HostRestarted if powered_down => {
            return clean("the guest powered off while the host-agent was away");
        }
        Exit::Code(0) => "the guest ended before it was ready".to_owned(),
        Exit::Code(code) => format!("the VMM ended with exit code {code}"),
        Exit::Signal(signal) => format!("the VMM was ended by signal {signal}"),
        Exit::HostRestarted => "the host was restarted".to_owned(),
        Exit::Unknown => "the VMM ended while the host-agent was away".to_owned(),
    };
    Ended { clean: false, reason, console_tail: Some(tail) }
}

/// The console's last bytes, made safe to print: a guest can write anything.
pub(super) fn console_tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = open_untrusted(path, OpenOptions::new().read(true))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.chars().filter(|c| *c == '\n' || *c == '\t' || !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_or_a_real_power_off_is_clean() {
        let off = "[ 9.1] reboot: Power down\n".to_owned();
        let panic = "Kernel panic - not syncing: Attempted to kill init!".to_owned();
        for (exit, wanted, ready, tail, clean) in [
            (Exit::Signal(9), true, true, String::new(), true),
            (Exit::Code(0), false, true, off.clone(), true),
            (Exit::Code(0), false, true, panic.clone(), false),
            (Exit::Code(0), false, false, String::new(), false),
            (Exit::Unknown, false, true, off, true),
            (Exit::Unknown, false, true, String::new(), false),
            (Exit::Signal(9), false, true, String::new(), false),
            (Exit::Code(1), false, true, String::new(), false),
        ] {
            assert_eq!(judge(exit, wanted, ready, tail.clone()).clean, clean, "{exit:?} {wanted} {ready} {tail}");
        }
    }
}

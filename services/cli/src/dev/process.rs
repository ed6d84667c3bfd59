//! Processes by identity: a pid alone may have been given to somebody else since; with its start time (and the
//! boot it belongs to) it names one process for ever.

use std::{io, path::PathBuf, time::Duration};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// How often the end of a process that is nobody's child is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// One process of this machine, living or dead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its pid.
    pub pid: i32,
    /// When it started, in clock ticks since the machine booted.
    pub start: u64,
    /// The boot it belongs to.
    pub boot: String,
}

impl ProcessId {
    /// The living process with that pid, if there is one.
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, start: start_time(pid)?, boot: boot_id() })
    }

    /// This process.
    pub fn own() -> Option<Self> {
        Self::of(std::process::id().cast_signed())
    }

    /// Whether it lives; a zombie does not.
    pub fn alive(&self) -> bool {
        self.boot == boot_id() && start_time(self.pid) == Some(self.start)
    }

    /// How long it has lived.
    pub fn uptime(&self) -> Option<Duration> {
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
        let since_boot: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
        let began = self.start as f64 / ticks as f64;
        Duration::try_from_secs_f64((since_boot - began).max(0.0)).ok()
    }

    /// Whether its program was replaced by a newer one since it started.
    pub fn is_outdated(&self) -> bool {
        let program = std::fs::read_link(format!("/proc/{}/exe", self.pid)).unwrap_or_default();
        program.to_string_lossy().ends_with(" (deleted)")
    }

    /// Sends it a signal, if it lives.
    ///
    /// # Errors
    /// It is not ours to signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if !self.alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until it is dead; whether it was in time.
    pub async fn gone_within(&self, bound: Duration) -> bool {
        let gone = tokio::time::timeout(bound, async {
            while self.alive() {
                tokio::time::sleep(LOOK).await;
            }
        });
        gone.await.is_ok()
    }

    /// Ends it: `signal`, and after `bound` SIGKILL.
    ///
    /// # Errors
    /// It is not ours to signal, or survives SIGKILL (stuck in the kernel).
    pub async fn end(&self, signal: Signal, bound: Duration) -> io::Result<()> {
        self.signal(signal)?;
        if self.gone_within(bound).await {
            return Ok(());
        }
        tracing::warn!(pid = self.pid, "it ignores {signal}: killed");
        self.signal(Signal::SIGKILL)?;
        if self.gone_within(Duration::from_secs(10)).await {
            return Ok(());
        }
        Err(io::Error::other(format!("process {} survives SIGKILL", self.pid)))
    }
}

/// The 22nd field of `/proc/<pid>/stat`; nothing for zombies and the dead. The command's name (2nd field) may hold anything, so
/// fields are counted from its closing parenthesis.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/stat"))).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    // The state is field 3, so field 22 is 18 after the next one.
    fields.nth(18)?.parse().ok()
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_told_from_a_later_one_with_its_pid() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(child.id().cast_signed()).unwrap();
        assert!(id.alive() && id.uptime().unwrap() < Duration::from_secs(60));
        let later = ProcessId { start: id.start + 1, ..id.clone() };
        assert!(!later.alive());
        later.signal(Signal::SIGKILL).unwrap();
        let after_reboot = ProcessId { boot: "another".into(), ..id.clone() };
        after_reboot.signal(Signal::SIGKILL).unwrap();
        assert!(id.alive());
        id.end(Signal::SIGTERM, Duration::from_secs(10)).await.unwrap();
        child.wait().unwrap();
        assert!(!id.alive());
    }
}

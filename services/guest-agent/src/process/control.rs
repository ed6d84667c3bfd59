//! Signals and resizes a job from beside it.

use std::{fs, io, sync::Arc};

use contract::workspace::TerminalSize;
use nix::{
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
    unistd::Pid,
};

use super::{Terminal, cgroup};

/// A handle to a job's processes.
#[derive(Clone, Debug)]
pub struct Control {
    /// The leader, its process group and its session: all have this number.
    group: Pid,
    terminal: Option<Terminal>,
    cgroup: Option<Arc<cgroup::Group>>,
}

impl Control {
    pub(super) fn new(group: Pid, terminal: Option<Terminal>, cgroup: Option<Arc<cgroup::Group>>) -> Self {
        Self { group, terminal, cgroup }
    }

    /// Whether it has a terminal.
    pub fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// The process group.
    pub fn group(&self) -> Pid {
        self.group
    }

    /// Whether the command itself runs, whoever of its children does. A zombie does not.
    pub fn leads(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        self.group.as_raw() > 1 && matches!(waitid(Id::Pid(self.group), flags), Ok(WaitStatus::StillAlive))
    }

    /// Sends a signal by number: to the terminal's foreground group, or to the process group.
    pub fn signal(&self, number: i32) {
        let foreground = self.terminal.as_ref().and_then(Terminal::foreground);
        send(-foreground.unwrap_or(self.group).as_raw(), number);
    }

    /// Sends a signal by number to the process group, and to the terminal's foreground group. SIGKILL goes to all processes that came
    /// of the command: those of its control group, or of its session where there is none.
    pub fn signal_all(&self, number: i32) {
        self.signal(number);
        send(-self.group.as_raw(), number);
        if number != libc::SIGKILL {
            return;
        }
        if self.cgroup.as_ref().is_none_or(|cgroup| cgroup.kill().is_err()) {
            for process in session(self.group) {
                send(process, number);
            }
        }
    }

    /// Tells the terminal, where there is one, its new size.
    pub fn resize(&self, size: TerminalSize) {
        if let Some(Err(error)) = self.terminal.as_ref().map(|terminal| terminal.resize(size)) {
            tracing::debug!("cannot resize a terminal: {error}");
        }
    }
}

/// Signals a process, or a group by its negative number.
fn send(whom: i32, number: i32) {
    // -1 would be everybody, and 1 is the init.
    if !(1..=libc::SIGRTMAX()).contains(&number) || whom.unsigned_abs() <= 1 {
        return;
    }
    // SAFETY: kill takes two integers; nix's enum has no real-time signals.
    if unsafe { libc::kill(whom, number) } != 0 {
        tracing::debug!("cannot send signal {number}: {}", io::Error::last_os_error());
    }
}

/// The processes of a session, by field 6 of their `/proc/<pid>/stat` (proc_pid_stat(5)); the name before it may hold anything.
fn session(leader: Pid) -> Vec<i32> {
    let of = |process: i32| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        stat[stat.rfind(')')? + 1..].split_whitespace().nth(3)?.parse::<i32>().ok()
    };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    processes.filter(|process| leader.as_raw() > 1 && of(*process) == Some(leader.as_raw())).collect()
}

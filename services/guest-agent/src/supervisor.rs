//! The supervisor: keeps one agent process alive, with a growing pause between its lives.
//!
//! Agents are forked, not executed anew, so they have what the boot learnt. Their command line begins with `@`,
//! which makes systemd's shutdown leave them alone until the machine itself goes.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{SigSet, SigmaskHow, sigprocmask},
        wait::waitpid,
    },
    unistd::{ForkResult, Pid, fork},
};

use crate::{agent, boot::Booted};

/// The pause after a first death.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// An agent that lived this long was well: the next pause is short again.
const LIVED_WELL: Duration = Duration::from_secs(60);
/// Makes the out-of-memory killer look elsewhere; what the agent starts for others gets 0 again.
const OOM_SCORE: &str = "-1000";

/// How long to wait before the next life.
#[derive(Debug)]
pub struct Pause {
    next: Duration,
    born: Instant,
}

impl Default for Pause {
    fn default() -> Self {
        Self { next: PAUSE_FIRST, born: Instant::now() }
    }
}

impl Pause {
    /// A life begins.
    pub fn born(&mut self) {
        self.born = Instant::now();
    }

    /// A life ended: how long until the next.
    pub fn died(&mut self) -> Duration {
        if self.born.elapsed() >= LIVED_WELL {
            self.next = PAUSE_FIRST;
        }
        let pause = self.next;
        self.next = (pause * 2).min(PAUSE_MAX);
        pause
    }
}

/// Lives as the supervisor beside the image's own init. `handed_over` ends when process 1 is the init.
pub fn run(booted: &Booted, handed_over: &OwnedFd) -> ! {
    mark();
    let mut pause = Pause::default();
    loop {
        pause.born();
        match fork_agent(booted, handed_over) {
            Ok(agent) => match waitpid(agent, None) {
                Ok(status) => tracing::error!("the agent ended: {status:?}"),
                Err(errno) => tracing::error!("cannot wait for the agent: {errno}"),
            },
            Err(errno) => tracing::error!("cannot start the agent: {errno}"),
        }
        std::thread::sleep(pause.died());
    }
}

/// Forks an agent process.
///
/// # Errors
/// The kernel has no memory or no process ids left.
pub fn fork_agent(booted: &Booted, handed_over: &OwnedFd) -> nix::Result<Pid> {
    // SAFETY: this process is single-threaded, so the child may do anything.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            mark();
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).unwrap_or_default();
            agent::run(booted, handed_over)
        }
    }
}

/// Marks this process: `@` in front of its command line, and spared by the out-of-memory killer.
fn mark() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        tracing::warn!("cannot set oom_score_adj: {error}");
    }
    let Some((start, end)) = std::fs::read_to_string("/proc/self/stat").ok().and_then(|stat| argument_area(&stat))
    else {
        return tracing::warn!("cannot find the command line's address");
    };
    if end > start {
        // SAFETY: the kernel put this process' arguments there at its exec, in writable memory that stays mapped for
        // its life; this process is single-threaded, and Rust's std copies arguments on each call.
        unsafe { (start as *mut u8).write(b'@') };
    }
}

/// `arg_start` and `arg_end` of `/proc/<pid>/stat`: fields 48 and 49. The second field (the name, in parentheses) may hold anything.
fn argument_area(stat: &str) -> Option<(usize, usize)> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(45);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_to_its_bound_and_shrinks_after_a_long_life() {
        let mut pause = Pause::default();
        let pauses: Vec<_> = (0..10).map(|_| pause.died()).collect();
        assert_eq!(pauses[..3], [PAUSE_FIRST, PAUSE_FIRST * 2, PAUSE_FIRST * 4]);
        assert_eq!(pauses[9], PAUSE_MAX);
        if let Some(long_ago) = Instant::now().checked_sub(LIVED_WELL) {
            pause.born = long_ago;
            assert_eq!(pause.died(), PAUSE_FIRST);
        }
    }

    #[test]
    fn the_command_line_is_found_behind_any_process_name() {
        let (start, end) = argument_area(&std::fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        let command_line = std::fs::read("/proc/self/cmdline").unwrap();
        assert_eq!(end - start, command_line.len());
        let fields: Vec<String> = (3..=52).map(|n| n.to_string()).collect();
        assert_eq!(argument_area(&format!("1 (a) b) {}", fields.join(" "))), Some((48, 49)));
        assert_eq!(argument_area("1 (a"), None);
    }
}

//! Process 1 where the image has no init: runs the image's own program, reaps what nobody waits for, keeps the
//! agent alive and powers the VM off.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::MsFlags,
    sys::{
        reboot::RebootMode,
        signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{
    boot::Booted,
    logging,
    process::{Environment, Launch, Program, user},
    supervisor::{Pause, fork_agent},
};

/// How long processes have between SIGTERM and SIGKILL at power-off.
const TERM_WAIT: Duration = Duration::from_secs(5);

/// Lives as process 1 to the end. `handed_over` is closed once everything has been started.
pub fn run(booted: &Booted, handed_over: (OwnedFd, OwnedFd)) -> ! {
    let (handed_over, done) = handed_over;
    let signals = signals();
    if let Err(errno) = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&signals), None) {
        tracing::error!("process 1 cannot block its signals: {errno}");
    }
    let mut children =
        Children { agent: None, respawn_at: Some(Instant::now()), main: start_main(booted), pause: Pause::default() };
    children.respawn(booted, &handed_over, Some(done));
    loop {
        match wait_signal(&signals, children.respawn_at) {
            Some(libc::SIGCHLD) => children.reap(),
            Some(libc::SIGTERM | libc::SIGINT) => shut_down(RebootMode::RB_AUTOBOOT),
            Some(_) => shut_down(RebootMode::RB_POWER_OFF),
            None => children.respawn(booted, &handed_over, None),
        }
    }
}

struct Children {
    agent: Option<Pid>,
    respawn_at: Option<Instant>,
    main: Option<Pid>,
    pause: Pause,
}

impl Children {
    /// Starts an agent when it is time to. `done` is process 1's end of the hand-over pipe, closed before the fork.
    fn respawn(&mut self, booted: &Booted, handed_over: &OwnedFd, done: Option<OwnedFd>) {
        drop(done);
        if self.respawn_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        self.pause.born();
        match fork_agent(booted, handed_over) {
            Ok(pid) => (self.agent, self.respawn_at) = (Some(pid), None),
            Err(errno) => {
                tracing::error!("cannot start the agent: {errno}");
                self.respawn_at = Some(Instant::now() + self.pause.died());
            }
        }
    }

    /// Reaps whoever has ended.
    fn reap(&mut self) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let Some(pid) = status.pid() else { return };
            if Some(pid) == self.agent {
                tracing::error!("the agent ended: {status:?}");
                (self.agent, self.respawn_at) = (None, Some(Instant::now() + self.pause.died()));
            } else if Some(pid) == self.main {
                self.main = None;
                match status {
                    WaitStatus::Exited(_, code) => {
                        tracing::info!("the image's program ended with code {code}; the VM stays up")
                    }
                    WaitStatus::Signaled(_, signal, _) => {
                        tracing::info!("the image's program was ended by {signal}; the VM stays up")
                    }
                    _ => {}
                }
            }
        }
    }
}

fn signals() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPWR] {
        set.add(signal);
    }
    set
}

/// The next signal, or nothing when `until` has come.
fn wait_signal(set: &SigSet, until: Option<Instant>) -> Option<i32> {
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let limit =
            left.map(|left| libc::timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: both pointers are to values that outlive the call, or null where the call allows it.
        let signal = unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), limit) };
        if signal > 0 {
            return Some(signal);
        }
        if Errno::last() == Errno::EAGAIN {
            return None;
        }
    }
}

/// Starts the image's entrypoint and command, or a shell where the kernel command line asks for one.
fn start_main(booted: &Booted) -> Option<Pid> {
    let image = &booted.settings.image;
    let shell = logging::kernel_parameter("warren.shell").is_some();
    let argv: Vec<String> =
        if shell { vec!["/bin/sh".into()] } else { image.entrypoint.iter().chain(&image.cmd).cloned().collect() };
    if argv.is_empty() {
        return None;
    }
    let started =
        user::find(if shell { "" } else { &image.user }).map_err(|error| error.to_string()).and_then(|account| {
            let environment = Environment::new(&image.env, &account);
            let cwd = if image.working_dir.is_empty() { "/".to_owned() } else { image.working_dir.clone() };
            let program = Program::find(&argv[0], environment.path(), &cwd).map_err(|error| error.to_string())?;
            let launch = Launch { program, argv, environment, cwd, account, terminal: shell };
            let mut command = launch.command().map_err(|error| error.to_string())?;
            if shell {
                command.stdin(Stdio::inherit());
            } else {
                command.stdin(Stdio::null());
            }
            command.spawn().map_err(|error| error.to_string())
        });
    match started {
        Ok(child) => Some(Pid::from_raw(child.id() as i32)),
        Err(problem) => {
            tracing::error!("cannot run the image's program: {problem}");
            None
        }
    }
}

/// Ends every process, then the machine.
fn shut_down(mode: RebootMode) -> ! {
    tracing::info!("powering off");
    signal_all(Signal::SIGTERM);
    let deadline = Instant::now() + TERM_WAIT;
    let mut child = SigSet::empty();
    child.add(Signal::SIGCHLD);
    while reap_all() && Instant::now() < deadline {
        wait_signal(&child, Some(deadline));
    }
    signal_all(Signal::SIGKILL);
    reap_all();
    crate::power::end(mode)
}

fn signal_all(signal: Signal) {
    match kill(Pid::from_raw(-1), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => tracing::error!("cannot send {signal} to all: {errno}"),
    }
}

/// Reaps who has ended; false when nobody is left.
fn reap_all() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return true,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// Makes the root filesystem read-only, so that it is clean when the machine goes.
pub fn seal_root() {
    if let Err(errno) =
        nix::mount::mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>)
    {
        tracing::warn!("cannot make the root filesystem read-only: {errno}");
    }
}

/// Becomes the image's own init.
///
/// # Errors
/// The program cannot be executed.
pub fn become_init(path: &std::path::Path) -> std::io::Error {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(path);
    command.env_clear().env("PATH", crate::process::DEFAULT_PATH).env("HOME", "/").env("TERM", "linux");
    command.exec()
}

/// A pipe that ends (for its reader) when process 1 has executed its init or closed its end.
///
/// # Errors
/// No descriptors are left.
pub fn hand_over_pipe() -> nix::Result<(OwnedFd, OwnedFd)> {
    let pipe = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    debug_assert!(pipe.0.as_raw_fd() > 2);
    Ok(pipe)
}

//! VMM processes: started detached, so that they outlive the agent; recognised by id, start time and command line; watched and
//! ended through a pidfd, which never means another process.

use std::{
    fs::{self, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    process::{Command, Stdio},
};

use contract::VmId;
use nix::{
    sched::{CloneFlags, setns},
    sys::{
        signal::Signal,
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::setsid,
};
use tokio::io::unix::AsyncFd;

use super::{jail::Jail, names};
use crate::{handles::ProcessIdentity, net::namespace::Namespace};

/// The argument by which a VM's VMM is found, whoever started it.
pub fn marker(vm: VmId) -> String {
    format!("warren-{vm}")
}

/// A living VMM process.
#[derive(Debug)]
pub struct Process {
    /// Who it is.
    pub identity: ProcessIdentity,
    pidfd: AsyncFd<OwnedFd>,
}

/// How a process ended, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// With the machine it ran on.
    HostRestarted,
    /// It was not this agent's child, so nobody was told.
    Unknown,
}

/// Starts a VMM in `dir`, in the lab's namespace and in its jail.
///
/// # Errors
/// The program is missing, the namespace is not there, or the jail cannot be made.
pub fn spawn(command: &[String], dir: &std::path::Path, namespace: &Namespace, jail: Jail) -> io::Result<Process> {
    let [program, arguments @ ..] = command else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "an empty command"));
    };
    let log = OpenOptions::new().create(true).append(true).open(dir.join(names::VMM_LOG))?;
    let errors = log.try_clone()?;
    let namespace = namespace.open()?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(dir.join(names::RUN)).stdin(Stdio::null()).stdout(log).stderr(errors);
    // SAFETY: setsid, setns and what the jail does are system calls that allocate nothing; the descriptors stay open until after
    // the spawn.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            jail.enter()
        });
    }
    let child = command.spawn()?;
    // Dropping a `Child` neither ends nor reaps it; [`Process::wait`] does that.
    let pid = child.id();
    let start_time = start_time(pid).ok_or_else(|| io::Error::other("the VMM ended at once"))?;
    Process::open(ProcessIdentity { pid, start_time })
}

impl Process {
    fn open(identity: ProcessIdentity) -> io::Result<Self> {
        let pid = libc::pid_t::try_from(identity.pid).map_err(io::Error::other)?;
        // SAFETY: pidfd_open(2) takes a process id and flags and touches no memory.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
        // SAFETY: the call above gave a fresh descriptor that nobody else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(descriptor) };
        // SAFETY: the pidfd is owned by the AsyncFd, which nothing takes it out of, so it stays open while registered.
        let pidfd = unsafe { AsyncFd::register(pidfd) }?;
        Ok(Self { identity, pidfd })
    }

    /// Adopts a process that is still the one it was. The pidfd is opened before the check, so that the
    /// process cannot be replaced in between.
    pub fn adopt(identity: ProcessIdentity, vm: VmId) -> Option<Self> {
        let process = Self::open(identity).ok()?;
        let same = start_time(identity.pid) == Some(identity.start_time) && carries(identity.pid, &marker(vm));
        (same && !is_zombie(identity.pid)).then_some(process)
    }

    /// Finds a VM's VMM by its command line, for when it was spawned but not recorded.
    pub fn find(vm: VmId) -> Option<Self> {
        let marker = marker(vm);
        let processes = fs::read_dir("/proc").ok()?.flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let found = pids.filter(|pid| carries(*pid, &marker)).find_map(|pid| Some((pid, start_time(pid)?)));
        let (pid, start_time) = found?;
        Self::adopt(ProcessIdentity { pid, start_time }, vm)
    }

    /// Waits for its end and reaps it when it is a child of this agent.
    pub async fn wait(&self) -> Exit {
        // A pidfd becomes readable when its process ends (pidfd_open(2)).
        if let Err(error) = self.pidfd.readable().await {
            tracing::error!(%error, "a VMM cannot be waited for");
        }
        match waitid(Id::PIDFd(self.pidfd.get_ref().as_fd()), WaitPidFlag::WEXITED) {
            Ok(WaitStatus::Exited(_, code)) => Exit::Code(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => Exit::Signal(signal as i32),
            _ => Exit::Unknown,
        }
    }

    /// Sends it a signal; an ended process is fine.
    pub fn signal(&self, signal: Signal) {
        // SAFETY: pidfd_send_signal(2) with a pidfd of ours and no siginfo touches no memory.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.get_ref().as_raw_fd(),
                signal as i32,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if sent < 0 {
            tracing::debug!(error = %io::Error::last_os_error(), "a VMM was not signalled");
        }
    }
}

fn stat_field(pid: u32, field: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may hold anything; count from behind it.
    let rest = stat.rsplit_once(')')?.1;
    rest.split_whitespace().nth(field - 3).map(str::to_owned)
}

fn start_time(pid: u32) -> Option<u64> {
    stat_field(pid, 22)?.parse().ok()
}

fn is_zombie(pid: u32) -> bool {
    stat_field(pid, 3).is_none_or(|state| state == "Z" || state == "X")
}

fn carries(pid: u32, argument: &str) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut arguments = command.split(|byte| *byte == 0);
    let program = arguments.next().unwrap_or_default();
    let is_vmm = std::path::Path::new(std::ffi::OsStr::from_bytes(program))
        .file_name()
        .is_some_and(|name| name.as_bytes().starts_with(b"qemu-system") || name == "firecracker");
    is_vmm && arguments.any(|part| part == argument.as_bytes())
}

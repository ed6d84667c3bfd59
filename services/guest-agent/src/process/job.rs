//! A running process with its streams.

use std::{
    os::{fd::AsRawFd, unix::process::ExitStatusExt},
    process::{Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use contract::workspace::TerminalSize;
use nix::{
    sys::{
        signal::{Signal, killpg},
        termios::Termios,
    },
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    process::Child,
    time::{Instant, sleep_until},
};

use super::{Cgroups, Control, Launch, LaunchError, Terminal, cgroup::Group, pty};

/// How long a process has between SIGHUP and SIGKILL when its caller has gone.
const HANG_UP_WAIT: Duration = Duration::from_secs(5);
/// How long an output may be silent after the process has ended until it is taken as ended too: a background child may keep it open for ever.
const LINGER: Duration = Duration::from_secs(2);
/// How long after the process' end an output is taken at all: a background child may print for ever. What was printed by then, and waits
/// in the pipe for whoever is slow to read it, is not lost.
const LINGER_MAX: Duration = Duration::from_secs(10);
/// What a terminal may hold of its ended process' output, in bytes: the kernel's TTYB_DEFAULT_MEM_LIMIT and N_TTY_BUF_SIZE.
const TERMINAL_HOLDS: usize = 68 * 1024;
/// How much is read at once, in bytes.
const READ_MAX: usize = 32 * 1024;

/// Standard input of a job.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;

/// One piece of a job's output.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// From standard output or the terminal.
    Stdout(Vec<u8>),
    /// From standard error.
    Stderr(Vec<u8>),
}

/// A running process. Dropped while it runs, it and its process group are killed.
pub struct Job {
    child: Child,
    group: Pid,
    status: Option<ExitStatus>,
    input: Option<Input>,
    stdout: Source,
    stderr: Source,
    terminal: Option<Terminal>,
    cgroup: Option<Arc<Group>>,
    /// From its end on: when the output of those it left behind is not taken any more.
    give_up: Option<Instant>,
}

/// An output of a process.
trait Stream: AsyncRead + AsRawFd + Send + Unpin {}

impl<T: AsyncRead + AsRawFd + Send + Unpin> Stream for T {}

struct Source {
    stream: Option<Box<dyn Stream>>,
    buffer: Vec<u8>,
    /// The bytes that are there and must be given out, however late it is.
    owed: usize,
}

impl Source {
    fn new(stream: Option<Box<dyn Stream>>) -> Self {
        Self { stream, buffer: Vec::new(), owed: 0 }
    }

    /// Notes what its pipe holds now, at the end of its process.
    fn owe(&mut self) {
        let Some(stream) = &self.stream else { return };
        let mut bytes = 0;
        // SAFETY: the ioctl writes one int, which lives until it returns.
        if unsafe { libc::ioctl(stream.as_raw_fd(), libc::FIONREAD, &raw mut bytes) } == 0 {
            self.owed = usize::try_from(bytes).unwrap_or_default();
        }
    }

    /// The next bytes; nothing at its end. Loses nothing when dropped half-way.
    async fn next(&mut self) -> Option<Vec<u8>> {
        let stream = self.stream.as_mut()?;
        self.buffer.resize(READ_MAX, 0);
        match stream.read(&mut self.buffer).await {
            Ok(length) if length > 0 => {
                self.owed = self.owed.saturating_sub(length);
                Some(self.buffer[..length].to_vec())
            }
            _ => {
                (self.stream, self.owed) = (None, 0);
                self.buffer = Vec::new();
                None
            }
        }
    }
}

impl Job {
    /// Starts a process with pipes, in a control group of its own.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(launch: &Launch, cgroups: &Cgroups) -> Result<Self, LaunchError> {
        let cgroup = cgroups.group();
        let mut command = launch.command_in(cgroup.as_ref())?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(command, launch)?;
        let input = child.stdin.take().map(|stream| Box::new(stream) as Input);
        let stdout = child.stdout.take().map(|stream| Box::new(stream) as _);
        let stderr = child.stderr.take().map(|stream| Box::new(stream) as _);
        Ok(Self::new(child, input, stdout, stderr, None, cgroup))
    }

    /// Starts a process in a terminal and a control group of its own.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_in_terminal(
        launch: &Launch,
        cgroups: &Cgroups,
        size: TerminalSize,
        adjust: impl FnOnce(&mut Termios),
    ) -> Result<Self, LaunchError> {
        let (terminal, slave) = Terminal::open(size, adjust).map_err(LaunchError::Terminal)?;
        // The user owns the terminal, as after a login.
        let owner = nix::unistd::Uid::from_raw(launch.account.uid);
        if let Err(errno) = nix::unistd::fchown(&slave, Some(owner), None) {
            tracing::debug!("cannot give the terminal to its user: {errno}");
        }
        let cgroup = cgroups.group();
        let mut command = launch.command_in(cgroup.as_ref())?;
        for (set, stream) in
            [Command::stdin as fn(&mut Command, Stdio) -> &mut Command, Command::stdout, Command::stderr]
                .into_iter()
                .map(|set| (set, pty::duplicate(&slave)))
        {
            set(&mut command, stream.map_err(LaunchError::Terminal)?);
        }
        drop(slave);
        let child = spawn(command, launch)?;
        let (input, output) = (Box::new(terminal.clone()), Box::new(terminal.clone()));
        Ok(Self::new(child, Some(input), Some(output), None, Some(terminal), cgroup))
    }

    fn new(
        child: Child,
        input: Option<Input>,
        stdout: Option<Box<dyn Stream>>,
        stderr: Option<Box<dyn Stream>>,
        terminal: Option<Terminal>,
        cgroup: Option<Group>,
    ) -> Self {
        Self {
            group: Pid::from_raw(child.id().map_or(0, |id| id as i32)),
            child,
            status: None,
            input,
            stdout: Source::new(stdout),
            stderr: Source::new(stderr),
            terminal,
            cgroup: cgroup.map(Arc::new),
            give_up: None,
        }
    }

    /// Its standard input; dropping it is the end of file.
    pub fn take_input(&mut self) -> Option<Input> {
        self.input.take()
    }

    /// A handle that can resize its terminal and signal it.
    pub fn control(&self) -> Control {
        Control::new(self.group, self.terminal.clone(), self.cgroup.clone())
    }

    /// The next output; nothing once the process has ended and all its output has been given out. What it leaves behind may print on for
    /// [`LINGER_MAX`], with pauses of less than [`LINGER`].
    pub async fn next_output(&mut self) -> Option<Output> {
        loop {
            let running = self.status.is_none();
            let (out, err) = (self.stdout.stream.is_some(), self.stderr.stream.is_some());
            if !running && !out && !err {
                return None;
            }
            let now = Instant::now();
            let owed = self.stdout.owed > 0 || self.stderr.owed > 0;
            let give_up = self.give_up.filter(|_| !owed).unwrap_or(now + LINGER);
            if give_up <= now {
                return None;
            }
            tokio::select! {
                // Where one has ended the rest is looked at anew: whether anything is left to wait for has changed.
                bytes = self.stdout.next(), if out => if let Some(bytes) = bytes { return Some(Output::Stdout(bytes)) },
                bytes = self.stderr.next(), if err => if let Some(bytes) = bytes { return Some(Output::Stderr(bytes)) },
                status = self.child.wait(), if running => self.ended(status.unwrap_or_else(|_| ExitStatus::from_raw(0x7f00))),
                () = sleep_until(give_up.min(now + LINGER)), if !running => return None,
            }
        }
    }

    fn ended(&mut self, status: ExitStatus) {
        (self.status, self.give_up) = (Some(status), Some(Instant::now() + LINGER_MAX));
        self.stderr.owe();
        match self.terminal {
            Some(_) => self.stdout.owed = TERMINAL_HOLDS,
            None => self.stdout.owe(),
        }
    }

    /// How it ended. Waits for it.
    pub async fn status(&mut self) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        let status = self.child.wait().await.unwrap_or_else(|_| ExitStatus::from_raw(0x7f00));
        self.ended(status);
        status
    }

    /// Ends it because its caller has gone: SIGHUP, and SIGKILL after a while.
    pub async fn hang_up(mut self) {
        self.input = None;
        self.signal_group(Signal::SIGHUP);
        // What it still prints goes nowhere, but must not stop it.
        let ended = tokio::time::timeout(HANG_UP_WAIT, async { while self.next_output().await.is_some() {} }).await;
        if ended.is_err() {
            tracing::debug!("process group {} did not heed SIGHUP", self.group);
        }
        self.signal_group(Signal::SIGKILL);
    }

    fn signal_group(&self, signal: Signal) {
        // After the leader was waited for its number may belong to somebody else, unless others of its group live:
        // a group's number is not given away while one of them does, and killpg on an empty group finds nobody.
        if self.group.as_raw() > 1 {
            killpg(self.group, signal).unwrap_or_default();
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.signal_group(Signal::SIGHUP);
            self.signal_group(Signal::SIGKILL);
        }
    }
}

fn spawn(command: Command, launch: &Launch) -> Result<Child, LaunchError> {
    tokio::process::Command::from(command).spawn().map_err(|cause| {
        let program = launch.argv.first().cloned().unwrap_or_default();
        match cause.raw_os_error() {
            // The file was there a moment ago, so what is missing is its interpreter.
            Some(libc::ENOENT) => {
                LaunchError::NotExecutable { program, cause: "its interpreter is not in the guest".into() }
            }
            _ => LaunchError::NotExecutable { program, cause: cause.to_string() },
        }
    })
}

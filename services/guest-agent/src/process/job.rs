//! A running process with its streams.

use std::{
    io,
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus, Stdio},
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
};

use super::{Launch, LaunchError, Terminal, pty};

/// How long a process has between SIGHUP and SIGKILL when its caller has gone.
const HANG_UP_WAIT: Duration = Duration::from_secs(5);
/// How long an output may be silent after the process has ended until it is taken as ended too: a background child may keep it open for ever.
const LINGER: Duration = Duration::from_secs(2);
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
}

struct Source {
    stream: Option<Box<dyn AsyncRead + Send + Unpin>>,
    buffer: Vec<u8>,
}

impl Source {
    fn new(stream: Option<Box<dyn AsyncRead + Send + Unpin>>) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The next bytes; nothing at its end. Loses nothing when dropped half-way.
    async fn next(&mut self) -> Option<Vec<u8>> {
        let stream = self.stream.as_mut()?;
        self.buffer.resize(READ_MAX, 0);
        match stream.read(&mut self.buffer).await {
            Ok(length) if length > 0 => Some(self.buffer[..length].to_vec()),
            _ => {
                self.stream = None;
                self.buffer = Vec::new();
                None
            }
        }
    }
}

impl Job {
    /// Starts a process with pipes.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(launch: &Launch) -> Result<Self, LaunchError> {
        let mut command = launch.command()?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(command, launch)?;
        let input = child.stdin.take().map(|stream| Box::new(stream) as Input);
        let stdout = child.stdout.take().map(|stream| Box::new(stream) as _);
        let stderr = child.stderr.take().map(|stream| Box::new(stream) as _);
        Ok(Self::new(child, input, stdout, stderr, None))
    }

    /// Starts a process in a terminal of its own.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_in_terminal(
        launch: &Launch,
        size: TerminalSize,
        adjust: impl FnOnce(&mut Termios),
    ) -> Result<Self, LaunchError> {
        let (terminal, slave) = Terminal::open(size, adjust).map_err(LaunchError::Terminal)?;
        // The user owns the terminal, as after a login.
        let owner = nix::unistd::Uid::from_raw(launch.account.uid);
        if let Err(errno) = nix::unistd::fchown(&slave, Some(owner), None) {
            tracing::debug!("cannot give the terminal to its user: {errno}");
        }
        let mut command = launch.command()?;
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
        Ok(Self::new(child, Some(input), Some(output), None, Some(terminal)))
    }

    fn new(
        child: Child,
        input: Option<Input>,
        stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
        stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
        terminal: Option<Terminal>,
    ) -> Self {
        let group = Pid::from_raw(child.id().map_or(0, |id| id as i32));
        Self { child, group, status: None, input, stdout: Source::new(stdout), stderr: Source::new(stderr), terminal }
    }

    /// Its standard input; dropping it is the end of file.
    pub fn take_input(&mut self) -> Option<Input> {
        self.input.take()
    }

    /// A handle that can resize its terminal and signal it.
    pub fn control(&self) -> Control {
        Control { group: self.group, terminal: self.terminal.clone() }
    }

    /// The next output; nothing once the process has ended and all its output has been given out.
    pub async fn next_output(&mut self) -> Option<Output> {
        loop {
            let running = self.status.is_none();
            let (out, err) = (self.stdout.stream.is_some(), self.stderr.stream.is_some());
            if !running && !out && !err {
                return None;
            }
            tokio::select! {
                // Where one has ended the rest is looked at anew: whether anything is left to wait for has changed.
                bytes = self.stdout.next(), if out => if let Some(bytes) = bytes { return Some(Output::Stdout(bytes)) },
                bytes = self.stderr.next(), if err => if let Some(bytes) = bytes { return Some(Output::Stderr(bytes)) },
                status = self.child.wait(), if running => self.status = Some(status.unwrap_or_else(|_| ExitStatus::from_raw(0x7f00))),
                () = tokio::time::sleep(LINGER), if !running => return None,
            }
        }
    }

    /// How it ended. Waits for it.
    pub async fn status(&mut self) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        let status = self.child.wait().await.unwrap_or_else(|_| ExitStatus::from_raw(0x7f00));
        self.status = Some(status);
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

/// Signals and resizes a job from beside it.
#[derive(Clone, Debug)]
pub struct Control {
    group: Pid,
    terminal: Option<Terminal>,
}

impl Control {
    /// Whether it has a terminal.
    pub fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Sends a signal by number: to the terminal's foreground group, or to the process group.
    pub fn signal(&self, number: i32) {
        let group = self.terminal.as_ref().and_then(Terminal::foreground).unwrap_or(self.group);
        if !(1..=libc::SIGRTMAX()).contains(&number) || group.as_raw() <= 1 {
            return;
        }
        // SAFETY: kill takes two integers; nix's enum has no real-time signals.
        if unsafe { libc::kill(-group.as_raw(), number) } != 0 {
            tracing::debug!("cannot send signal {number}: {}", io::Error::last_os_error());
        }
    }

    /// Sends a signal by number to the process group, and to the terminal's foreground group.
    pub fn signal_all(&self, number: i32) {
        self.signal(number);
        Self { group: self.group, terminal: None }.signal(number);
    }

    /// The process group.
    pub fn group(&self) -> Pid {
        self.group
    }

    /// Tells the terminal, where there is one, its new size.
    pub fn resize(&self, size: TerminalSize) {
        if let Some(Err(error)) = self.terminal.as_ref().map(|terminal| terminal.resize(size)) {
            tracing::debug!("cannot resize a terminal: {error}");
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

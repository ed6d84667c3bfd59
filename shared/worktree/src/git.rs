//! **Git** as a program: how it is run so that nothing of a repository is executed, nobody is asked anything and nothing hangs.

use std::{
    ffi::{OsStr, OsString},
    io::{self, BufRead, Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::{
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::{Signal, kill, killpg},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};

use crate::{error::WorktreeError, stop::Stop};

/// How long one command may take: packing a very large repository on a slow disk.
const LIMIT: Duration = Duration::from_secs(1800);
/// The most bytes of what git complains about that are kept.
const SAID_MAX: usize = 2000;
/// The most bytes of what git prints that are held at once.
const OUTPUT_MAX: u64 = 512 << 20;

/// Settings of every command, whatever the repository or its user says: no hooks, no daemons, no surprises in the output.
const SETTINGS: [&str; 9] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "submodule.recurse=false",
    "log.showSignature=false",
    "pack.writeReverseIndex=false",
    "pack.packSizeLimit=0",
    "fetch.writeCommitGraph=false",
];

/// Settings of commands whose memory is bounded, and of repositories they read.
pub(crate) const FRUGAL: [&str; 5] = [
    "pack.threads=1",
    "pack.windowMemory=256m",
    "core.packedGitWindowSize=16m",
    "core.packedGitLimit=256m",
    "core.bigFileThreshold=16m",
];

/// What would lead git to another repository than the one it is run in (`git rev-parse --local-env-vars`), or change its names.
const FOREIGN: [&str; 18] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_CONFIG",
    "GIT_CONFIG_PARAMETERS",
    "GIT_CONFIG_COUNT",
    "GIT_OBJECT_DIRECTORY",
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_GRAFT_FILE",
    "GIT_INDEX_FILE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_REPLACE_REF_BASE",
    "GIT_PREFIX",
    "GIT_SHALLOW_FILE",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_EXTERNAL_DIFF",
    "GIT_LITERAL_PATHSPECS",
];

/// Git in one directory.
#[derive(Clone, Debug)]
pub struct Git {
    dir: PathBuf,
    env: Vec<(OsString, OsString)>,
    settings: Vec<String>,
    limit: Duration,
    bounds: Bounds,
    stop: Option<Stop>,
}

/// What git and all it starts may take of the machine when what it reads is a stranger's, each process for itself; left out, what it wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// The most bytes of memory, files that are mapped included (`RLIMIT_AS`).
    pub memory: Option<u64>,
    /// The most bytes of one file that is written (`RLIMIT_FSIZE`).
    pub file: Option<u64>,
}

impl Git {
    /// In that directory.
    pub fn at(dir: &Path) -> Self {
        let (env, settings) = (Vec::new(), Vec::new());
        Self { dir: dir.to_owned(), env, settings, limit: LIMIT, bounds: Bounds::default(), stop: None }
    }

    /// With one more variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().into()));
        self
    }

    /// With one more setting, as `-c` has them.
    #[must_use]
    pub fn setting(mut self, setting: impl Into<String>) -> Self {
        self.settings.push(setting.into());
        self
    }

    /// With another time limit.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Ended, with all it starts, when that stop says so, or this process ends. It is in a process group of its own then, where no terminal's
    /// keys reach it.
    #[must_use]
    pub fn stopped_by(mut self, stop: &Stop) -> Self {
        self.stop = Some(stop.clone());
        self
    }

    /// Within bounds. It uses one thread and maps files in small pieces then, so that they are enough for what is honest.
    #[must_use]
    pub(crate) fn bounded(mut self, bounds: Bounds) -> Self {
        self.bounds = bounds;
        if bounds.memory.is_some() {
            self.settings.extend(FRUGAL.map(str::to_owned));
        }
        self
    }

    fn command<A: AsRef<OsStr>>(&self, args: &[A]) -> Command {
        let mut command = Command::new("git");
        for name in FOREIGN {
            command.env_remove(name);
        }
        command
            .current_dir(&self.dir)
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("LC_ALL", "C")
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        for setting in SETTINGS.into_iter().chain(self.settings.iter().map(String::as_str)) {
            command.args(["-c", setting]);
        }
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// What it prints.
    ///
    /// # Errors
    /// It fails, cannot be run or takes too long.
    pub fn run<A: AsRef<OsStr>>(&self, args: &[A]) -> Result<Vec<u8>, WorktreeError> {
        self.feed(args, Vec::new())
    }

    /// What it prints, without the newline at the end.
    ///
    /// # Errors
    /// As [`Git::run`]; it is not UTF-8.
    pub fn text<A: AsRef<OsStr>>(&self, args: &[A]) -> Result<String, WorktreeError> {
        let mut out = self.run(args)?;
        if out.last() == Some(&b'\n') {
            out.pop();
        }
        String::from_utf8(out)
            .map_err(|_| WorktreeError::Git { what: name(args), said: "it said what is not UTF-8".to_owned() })
    }

    /// As [`Git::text`], or nothing where git answers with exit code 1 or 128: there is none.
    ///
    /// # Errors
    /// It cannot be run or takes too long.
    pub fn ask<A: AsRef<OsStr>>(&self, args: &[A]) -> Result<Option<String>, WorktreeError> {
        match self.text(args) {
            Ok(text) => Ok(Some(text)),
            Err(WorktreeError::Git { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What it prints when it reads `input`.
    ///
    /// # Errors
    /// As [`Git::run`].
    pub fn feed<A: AsRef<OsStr>>(&self, args: &[A], input: Vec<u8>) -> Result<Vec<u8>, WorktreeError> {
        self.stream(args, move |to| to.write_all(&input)).map(|(out, _)| out)
    }

    /// What it prints while `write` gives it its input, and what that came to. A write that fails because git has ended is git's failure.
    ///
    /// # Errors
    /// As [`Git::run`].
    pub fn stream<A: AsRef<OsStr>, T: Send>(
        &self,
        args: &[A],
        write: impl FnOnce(&mut dyn Write) -> io::Result<T> + Send,
    ) -> Result<(Vec<u8>, io::Result<T>), WorktreeError> {
        let mut over = false;
        let read = |from: &mut dyn BufRead| {
            let mut out = Vec::new();
            // Cut off output is shorter than git's success promises; whoever parses it finds out.
            if let Err(error) = from.take(OUTPUT_MAX + 1).read_to_end(&mut out) {
                tracing::debug!(%error, "git's output was cut off");
            }
            over = out.len() as u64 > OUTPUT_MAX;
            out
        };
        let done = self.converse(args, write, read);
        if over {
            return Err(WorktreeError::TooMuch(format!("git {} says more than {OUTPUT_MAX} bytes", name(args))));
        }
        done.map(|(written, out)| (out, written))
    }

    /// Gives git its input with `write` while `read` takes what it prints, so that neither has to be held whole.
    ///
    /// # Errors
    /// As [`Git::run`].
    pub fn converse<A: AsRef<OsStr>, W: Send, R: Send>(
        &self,
        args: &[A],
        write: impl FnOnce(&mut dyn Write) -> io::Result<W> + Send,
        read: impl FnOnce(&mut dyn BufRead) -> R + Send,
    ) -> Result<(io::Result<W>, R), WorktreeError> {
        let mut command = self.command(args);
        self.bounds.impose(&mut command);
        if let Some(stop) = &self.stop {
            stop.check()?;
            tie(&mut command);
        }
        let mut child = command.stdin(Stdio::piped()).spawn().map_err(WorktreeError::NoGit)?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(WorktreeError::NoGit(io::ErrorKind::BrokenPipe.into()));
        };
        thread::scope(|scope| {
            let writing = scope.spawn(move || {
                let mut stdin = io::BufWriter::with_capacity(64 * 1024, stdin);
                let written = write(&mut stdin)?;
                stdin.flush()?;
                Ok::<_, io::Error>(written)
            });
            let complaints = scope.spawn(move || drain(stderr, SAID_MAX));
            // What is not read any more is closed, so that git ends.
            let reading = scope.spawn(move || read(&mut io::BufReader::with_capacity(256 * 1024, stdout)));
            let ended = self.wait(&mut child, &name(args));
            let written = writing.join().unwrap_or_else(|_| Err(io::Error::other("its input could not be written")));
            let taken = reading.join();
            let said = complaints.join().unwrap_or_default();
            if !ended? {
                return Err(WorktreeError::Git { what: name(args), said: words(&said) });
            }
            let taken =
                taken.map_err(|_| WorktreeError::Git { what: name(args), said: "it was not understood".to_owned() });
            Ok((written, taken?))
        })
    }

    /// Waits for the end, of which [`LIMIT`] is the latest; whether it went well.
    fn wait(&self, child: &mut Child, what: &str) -> Result<bool, WorktreeError> {
        let (done, ended) = mpsc::channel::<()>();
        let (pid, limit) = (Pid::from_raw(child.id().cast_signed()), self.limit);
        if let Some(stop) = &self.stop {
            stop.begun(pid);
        }
        let late = thread::scope(|scope| {
            let watchdog = scope.spawn(move || {
                let late = ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
                let end = if self.stop.is_some() { killpg } else { kill };
                if late && let Err(error) = end(pid, Signal::SIGKILL) {
                    tracing::debug!(%error, "git had ended already");
                }
                late
            });
            // Not waited for yet: the id stays git's until nobody can mean it any more.
            let over = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
            drop(done);
            let late = watchdog.join().unwrap_or_default();
            over.map(|_| late)
        });
        if let Some(stop) = &self.stop {
            stop.ended(pid);
        }
        let ended = child.wait().map_err(WorktreeError::NoGit)?.success();
        if late.map_err(|error| WorktreeError::NoGit(error.into()))? {
            return Err(WorktreeError::GitTimeout { what: what.to_owned(), seconds: limit.as_secs() });
        }
        if let Some(stop) = self.stop.as_ref().filter(|_| !ended) {
            stop.check()?;
        }
        Ok(ended)
    }
}

/// Puts a command into a process group of its own, which ends with the thread that starts it.
fn tie(command: &mut Command) {
    command.process_group(0);
    let tie = || Ok(prctl::set_pdeathsig(Signal::SIGKILL)?);
    // SAFETY: prctl(2) is a system call that allocates nothing and touches no memory of the parent.
    unsafe { command.pre_exec(tie) };
}

impl Bounds {
    fn impose(self, command: &mut Command) {
        let limits = [(Resource::RLIMIT_AS, self.memory), (Resource::RLIMIT_FSIZE, self.file)];
        let limits = limits.map(|(resource, most)| most.map(|most| (resource, most)));
        if limits.iter().all(Option::is_none) {
            return;
        }
        let impose = move || {
            for (resource, most) in limits.into_iter().flatten() {
                setrlimit(resource, most, most)?;
            }
            Ok(())
        };
        // SAFETY: setrlimit(2) is a system call that allocates nothing and touches no memory of the parent.
        unsafe { command.pre_exec(impose) };
    }
}

/// The subcommand, for errors.
fn name<A: AsRef<OsStr>>(args: &[A]) -> String {
    args.first().map(|name| name.as_ref().to_string_lossy().into_owned()).unwrap_or_default()
}

/// Reads to the end and keeps the last `keep` bytes.
fn drain(mut from: impl Read, keep: usize) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        kept.extend_from_slice(&piece[..count]);
        let over = kept.len().saturating_sub(keep);
        kept.drain(..over);
    }
    kept
}

/// Git's complaint in one line.
fn words(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let lines: Vec<_> =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("hint:")).collect();
    let lines = lines[lines.len().saturating_sub(4)..].join("; ");
    let words = lines.trim_start_matches("fatal: ").trim_start_matches("error: ");
    if words.is_empty() { "it did not say why".to_owned() } else { words.to_owned() }
}

/// The records of output that a NUL byte ends.
pub(crate) fn records(out: &[u8]) -> impl Iterator<Item = &[u8]> {
    out.split(|byte| *byte == 0).filter(|record| !record.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_say_what_git_said_and_slow_ones_are_ended() {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::at(dir.path());
        let error = git.run(&["rev-parse", "--verify", "HEAD"]).unwrap_err();
        assert!(error.to_string().contains("git rev-parse failed: not a git repository"), "{error}");
        assert_eq!(git.ask(&["config", "--get", "none.such"]).unwrap(), None);
        // `cat-file --batch` waits for input that does not come.
        git.run(&["init", "-q"]).unwrap();
        let (hold, held) = mpsc::channel::<()>();
        let late = git.clone().within(Duration::from_millis(100)).stream(&["cat-file", "--batch"], move |to| {
            to.flush()?;
            let waited = held.recv_timeout(Duration::from_millis(1500));
            assert!(waited.is_err());
            Ok(())
        });
        assert!(matches!(late, Err(WorktreeError::GitTimeout { .. })), "{late:?}");
        drop(hold);
        assert_eq!(words(b"hint: x\nerror: one\nfatal: two\n"), "one; fatal: two");
    }
}

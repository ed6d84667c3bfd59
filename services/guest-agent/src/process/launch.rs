//! What to run: program, arguments, environment, directory, user, terminal.

use std::{
    ffi::{CStr, CString},
    fs,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::PermissionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use nix::{
    fcntl::AtFlags,
    unistd::{Gid, Uid, setgid, setgroups, setsid, setuid},
};

use super::{cgroup::Group, user::Account};

/// Where programs are looked for when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why something cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No such program.
    #[error("{0}: not found in the guest")]
    NotFound(String),
    /// There is something, but it cannot be executed.
    #[error("{program}: {cause}")]
    NotExecutable {
        /// What was asked for.
        program: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The working directory cannot be used.
    #[error("working directory {cwd}: {cause}")]
    Directory {
        /// What was asked for.
        cwd: String,
        /// What is wrong with it.
        cause: std::io::Error,
    },
    /// An argument or a variable with a zero byte in it.
    #[error("arguments, environment and directory must not contain zero bytes")]
    ZeroByte,
    /// No terminal to be had.
    #[error("cannot open a terminal")]
    Terminal(#[source] std::io::Error),
}

impl LaunchError {
    /// The exit code a shell would give.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::NotFound(_) => 127,
            _ => 126,
        }
    }
}

/// Environment variables, the last value of a name counts.
#[derive(Clone, Debug, Default)]
pub struct Environment(Vec<(String, String)>);

impl Environment {
    /// What every process gets: a path, who it is, and what the image's author asked for.
    pub fn new(image: &[String], account: &Account) -> Self {
        let mut environment = Self::default();
        environment.set("PATH", DEFAULT_PATH);
        environment.set("HOME", &account.home);
        environment.set("USER", &account.name);
        environment.set("LOGNAME", &account.name);
        environment.set("SHELL", &account.shell);
        environment.extend(image);
        environment
    }

    /// Adds `NAME=value` pairs; what is none is left out.
    pub fn extend(&mut self, pairs: &[String]) {
        for (name, value) in pairs.iter().filter_map(|pair| pair.split_once('=')) {
            self.set(name, value);
        }
    }

    /// Sets one variable. Names the kernel could not carry are left out.
    pub fn set(&mut self, name: &str, value: &str) {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return;
        }
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.to_owned(), value.to_owned()));
    }

    /// Where programs are looked for.
    pub fn path(&self) -> &str {
        self.0.iter().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value)
    }
}

/// The program itself.
#[derive(Clone, Debug)]
pub enum Program {
    /// A file of the image.
    File(PathBuf),
    /// guest-agent once more, by a descriptor: its file is gone since the initramfs was freed.
    Agent(Arc<OwnedFd>),
}

impl Program {
    /// Looks `name` up in `path`; a name with a slash is a path itself, seen from `cwd`.
    ///
    /// # Errors
    /// There is none, or none that can be executed.
    pub fn find(name: &str, path: &str, cwd: &str) -> Result<Self, LaunchError> {
        if name.contains('\0') {
            return Err(LaunchError::ZeroByte);
        }
        if name.contains('/') {
            return executable(&Path::new(cwd).join(name), name).map(Self::File);
        }
        if name.is_empty() {
            return Err(LaunchError::NotFound("\"\"".into()));
        }
        let mut refused = None;
        for directory in path.split(':') {
            match executable(&Path::new(cwd).join(directory).join(name), name) {
                Ok(file) => return Ok(Self::File(file)),
                Err(LaunchError::NotFound(_)) => {}
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| LaunchError::NotFound(name.to_owned())))
    }
}

fn executable(file: &Path, name: &str) -> Result<PathBuf, LaunchError> {
    let refuse = |cause: String| Err(LaunchError::NotExecutable { program: name.to_owned(), cause });
    match fs::metadata(file) {
        Ok(metadata) if metadata.is_dir() => refuse("is a directory".into()),
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => refuse("permission denied".into()),
        Ok(_) => Ok(file.to_owned()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            Err(LaunchError::NotFound(name.to_owned()))
        }
        Err(error) => refuse(error.to_string()),
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The program.
    pub program: Program,
    /// Its arguments, the zeroth (its name for itself) included; never empty.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub environment: Environment,
    /// Its working directory.
    pub cwd: String,
    /// Whom it runs as.
    pub account: Account,
    /// Whether its standard input is a terminal that becomes its controlling one.
    pub terminal: bool,
}

impl Launch {
    /// The command, with standard streams yet to be set. It becomes leader of a session of its own.
    ///
    /// # Errors
    /// Something has a zero byte in it, or the directory cannot be used.
    pub fn command(&self) -> Result<Command, LaunchError> {
        self.command_in(None)
    }

    /// The same, in a control group.
    ///
    /// # Errors
    /// As for [`Self::command`].
    pub(super) fn command_in(&self, cgroup: Option<&Group>) -> Result<Command, LaunchError> {
        if self.argv.iter().any(|argument| argument.contains('\0')) {
            return Err(LaunchError::ZeroByte);
        }
        let directory = |cause| LaunchError::Directory { cwd: self.cwd.clone(), cause };
        if !fs::metadata(&self.cwd).map_err(directory)?.is_dir() {
            return Err(directory(std::io::Error::from(std::io::ErrorKind::NotADirectory)));
        }
        let mut command = match &self.program {
            Program::File(file) => Command::new(file),
            // Never executed by this name: the last step below does it by descriptor.
            Program::Agent(_) => Command::new("/proc/self/exe"),
        };
        let (name, arguments) = self.argv.split_first().ok_or_else(|| LaunchError::NotFound("\"\"".into()))?;
        command.arg0(name).args(arguments).env_clear();
        command.envs(self.environment.0.iter().map(|(name, value)| (name, value)));
        let child = self.child(cgroup)?;
        // SAFETY: the closure runs in the forked child and only makes system calls with memory prepared here.
        unsafe { command.pre_exec(move || child.become_it()) };
        Ok(command)
    }

    fn child(&self, cgroup: Option<&Group>) -> Result<Child, LaunchError> {
        let zero = |_| LaunchError::ZeroByte;
        let by_descriptor = match &self.program {
            Program::File(_) => None,
            Program::Agent(descriptor) => Some(ByDescriptor {
                descriptor: Arc::clone(descriptor),
                argv: self.argv.iter().map(|a| CString::new(a.as_bytes())).collect::<Result<_, _>>().map_err(zero)?,
                environment: self
                    .environment
                    .0
                    .iter()
                    .map(|(name, value)| CString::new(format!("{name}={value}")))
                    .collect::<Result<_, _>>()
                    .map_err(zero)?,
            }),
        };
        let door = cgroup.map(Group::door).transpose().unwrap_or_else(|error| {
            tracing::warn!("a command runs outside its control group: {error}");
            None
        });
        Ok(Child {
            door,
            uid: Uid::from_raw(self.account.uid),
            gid: Gid::from_raw(self.account.gid),
            groups: self.account.groups.iter().copied().map(Gid::from_raw).collect(),
            // An unprivileged process (a test) keeps what it has.
            privileged: Uid::effective().is_root(),
            cwd: CString::new(Path::new(&self.cwd).as_os_str().as_bytes()).map_err(zero)?,
            terminal: self.terminal,
            by_descriptor,
        })
    }
}

/// What the forked child does before it executes the program.
struct Child {
    /// The way into its control group.
    door: Option<fs::File>,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    privileged: bool,
    cwd: CString,
    terminal: bool,
    by_descriptor: Option<ByDescriptor>,
}

struct ByDescriptor {
    descriptor: Arc<OwnedFd>,
    argv: Vec<CString>,
    environment: Vec<CString>,
}

impl Child {
    fn become_it(&self) -> std::io::Result<()> {
        setsid()?;
        if let Some(door) = &self.door {
            // Refused (a group of a kind that takes no processes), it is as where there are no groups.
            nix::unistd::write(door, b"0").unwrap_or_default();
        }
        if self.terminal {
            // SAFETY: an ioctl on the standard input without a pointer.
            nix::errno::Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })?;
        }
        plain_oom_score();
        // SAFETY: sets this process' file mode mask.
        unsafe { libc::umask(0o022) };
        if self.privileged {
            setgroups(&self.groups)?;
            setgid(self.gid)?;
            setuid(self.uid)?;
        }
        nix::unistd::chdir(self.cwd.as_c_str())?;
        match &self.by_descriptor {
            None => Ok(()),
            Some(this) => {
                let nothing: &CStr = c"";
                let Err(errno) = nix::unistd::execveat(
                    &*this.descriptor,
                    nothing,
                    &this.argv,
                    &this.environment,
                    AtFlags::AT_EMPTY_PATH,
                );
                Err(errno.into())
            }
        }
    }
}

/// Undoes what the agent did for itself; without allocating, and without caring when it cannot.
fn plain_oom_score() {
    // SAFETY: open, write and close with constant arguments and a descriptor made here.
    unsafe {
        let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file >= 0 {
            libc::write(file, c"0".as_ptr().cast(), 1);
            libc::close(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_would() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        fs::write(at.join("data"), "").unwrap();
        fs::create_dir(at.join("bin")).unwrap();
        let cwd = at.to_str().unwrap();
        assert!(matches!(Program::find("sh", DEFAULT_PATH, "/"), Ok(Program::File(_))));
        assert_eq!(Program::find("nope", DEFAULT_PATH, "/").unwrap_err().exit_code(), 127);
        assert_eq!(Program::find("", DEFAULT_PATH, "/").unwrap_err().exit_code(), 127);
        assert_eq!(Program::find("./data", DEFAULT_PATH, cwd).unwrap_err().exit_code(), 126);
        assert_eq!(Program::find("./data/x", DEFAULT_PATH, cwd).unwrap_err().exit_code(), 127);
        assert_eq!(Program::find("./bin", DEFAULT_PATH, cwd).unwrap_err().exit_code(), 126);
        assert_eq!(Program::find("data", cwd, "/").unwrap_err().exit_code(), 126);
    }

    #[test]
    fn a_later_variable_wins_and_a_hostile_one_is_left_out() {
        let mut environment = Environment::default();
        environment.extend(&["A=1".into(), "A=2".into(), "=x".into(), "B".into(), "C=\0".into(), "PATH=/x".into()]);
        assert_eq!(environment.0, [("A".to_owned(), "2".to_owned()), ("PATH".to_owned(), "/x".to_owned())]);
        assert_eq!(environment.path(), "/x");
    }
}

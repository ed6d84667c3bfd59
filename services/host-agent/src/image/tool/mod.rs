//! A **tool** of e2fsprogs or the like, run on a filesystem in a file that anybody may have written: as a user who owns nothing but that
//! file, without a network, within limits of time and memory, and ended when its staging is.

mod alone;
mod programs;
mod stream;

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::{
            fs::{PermissionsExt, chown},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use contract::{ApiError, OperationId};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::{Signal, killpg},
    },
    unistd::{Gid, Pid, Uid, getppid, setgid, setgroups, setpgid, setuid},
};
use tokio_util::sync::CancellationToken;

use super::storage_error;

pub(super) use programs::checks;
pub(super) use stream::Stream;

/// Where the user ids of tools begin: above those of VMMs ([`crate::vmm::jail`]), in the range systemd's UIDS-GIDS.md leaves to nobody.
const FIRST_ID: u32 = 0x7701_0000;
/// How long one run may take: a check of a terabyte takes minutes.
const TIME: Duration = Duration::from_secs(30 * 60);
/// Bytes of memory it may ask for: `e2fsck` needs some hundred bytes a directory.
const MEMORY: u64 = 2 << 30;
/// Descriptors it may have.
const DESCRIPTORS: u64 = 64;
/// Processes and threads it may have, with those of other tools of the same user.
const PROCESSES: u64 = 64;
/// Bytes of what it says that are kept; the rest is read and dropped.
const OUTPUT: usize = 4 << 20;
/// Longest pause between two looks whether it has ended.
const LOOK_MAX: Duration = Duration::from_millis(50);
/// Where the tools are looked for.
const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// A filesystem in a file that tools work on. Its owner is a user of this staging's own until it is given back.
pub(super) struct Patient<'a> {
    path: PathBuf,
    file: File,
    user: Option<u32>,
    bytes: u64,
    cancel: &'a CancellationToken,
    /// What tools take for the present time, Unix seconds: what they write depends on nothing else.
    now: u64,
}

/// What a tool said and how it ended.
#[derive(Debug)]
pub(super) struct Said {
    pub status: ExitStatus,
    pub output: Vec<u8>,
    /// Whether it said more than is kept.
    pub cut: bool,
}

impl Said {
    /// Its exit code; nothing when a signal ended it, as one of its limits does.
    pub(super) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The last line that says something, without what a terminal would act on.
    pub(super) fn last_line(&self) -> String {
        let text = String::from_utf8_lossy(&self.output);
        let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        line.chars().filter(|c| !c.is_control()).take(200).collect()
    }
}

/// A file a tool reads beside the filesystem: without a name, readable to it, gone with the run.
pub(super) struct Given(File);

impl Given {
    /// With that content.
    ///
    /// # Errors
    /// There is no memory left.
    pub(super) fn new(content: &[u8]) -> io::Result<Self> {
        let descriptor = nix::sys::memfd::memfd_create(c"given", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
        let mut file = File::from(descriptor);
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(0o444))?;
        Ok(Self(file))
    }

    /// The path by which the tool opens it.
    pub(super) fn path(&self) -> String {
        by_number(self.0.as_raw_fd())
    }
}

fn by_number(descriptor: RawFd) -> String {
    format!("/proc/self/fd/{descriptor}")
}

impl<'a> Patient<'a> {
    /// Takes a file for tools to work on. Ends with `cancel`.
    ///
    /// # Errors
    /// The file cannot be opened or given to another user.
    pub(super) fn take(
        path: &Path,
        operation: OperationId,
        now: u64,
        cancel: &'a CancellationToken,
    ) -> Result<Self, ApiError> {
        let user = nix::unistd::geteuid().is_root().then(|| user(operation));
        let open = || -> io::Result<File> {
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
            chown(path, user, user)?;
            Ok(file)
        };
        let file = open().map_err(|error| storage_error(path, &error))?;
        let bytes = file.metadata().map_err(|error| storage_error(path, &error))?.len();
        Ok(Self { path: path.to_owned(), file, user, bytes, cancel, now })
    }

    /// Makes the file root's again.
    ///
    /// # Errors
    /// The file is gone.
    pub(super) fn give_back(self) -> Result<(), ApiError> {
        let own = || -> io::Result<()> {
            chown(&self.path, self.user.map(|_| 0), self.user.map(|_| 0))?;
            fs::set_permissions(&self.path, Permissions::from_mode(0o644))
        };
        own().map_err(|error| storage_error(&self.path, &error))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file itself.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Runs a tool to its end: `program`, `arguments`, and last the path of the filesystem, then `more`. It reads `input` from its standard
    /// input and may open what is given. Blocking.
    ///
    /// # Errors
    /// `failed_precondition` when the program is not installed, `cancelled`, `deadline_exceeded`.
    pub(super) fn run(
        &self,
        program: &str,
        arguments: &[&str],
        more: &[&str],
        input: &[u8],
        given: &[Given],
    ) -> Result<Said, ApiError> {
        let failed = |error: io::Error| not_run(program, &error);
        let (mut output, writer) = io::pipe().map_err(failed)?;
        let input = Given::new(input).map_err(failed)?;
        let stdin = File::open(input.path()).map_err(failed)?;
        let mut command = Command::new(program);
        surround(&mut command);
        command.args(arguments).arg(by_number(self.file.as_raw_fd())).args(more).env("DEBUGFS_PAGER", "__none__");
        for name in ["E2FSPROGS_FAKE_TIME", "E2FSCK_TIME"] {
            command.env(name, self.now.to_string());
        }
        command.stdin(stdin).stdout(writer.try_clone().map_err(failed)?).stderr(writer);
        self.confine(&mut command, given);
        let spawned = command.spawn();
        // The pipe's other ends in this process, without which its reader would never see the end.
        drop(command);
        let mut child = spawned.map_err(|error| not_run(program, &error))?;
        let reader = std::thread::spawn(move || bounded(&mut output));
        let status = wait(program, &mut child, || self.cancel.is_cancelled());
        let (output, cut) = reader.join().unwrap_or_default();
        Ok(Said { status: status?, output, cut })
    }

    fn confine(&self, command: &mut Command, given: &[Given]) {
        let keep: Vec<RawFd> = given.iter().map(|file| file.0.as_raw_fd()).chain([self.file.as_raw_fd()]).collect();
        let (user, bytes, parent) = (self.user, self.bytes, nix::unistd::getpid());
        // SAFETY: between fork and exec only system calls are made, and no memory is allocated.
        unsafe {
            command.pre_exec(move || confine(&keep, user, bytes, parent));
        }
    }

    /// Starts a tool that writes an archive of the filesystem to its standard output: `program`, `arguments`, and last the path of the
    /// filesystem. Errors call the filesystem `what`; more than `allowed` bytes are not read. The thread must live until the stream is dropped.
    ///
    /// # Errors
    /// `failed_precondition` when the program is not installed.
    pub(super) fn stream(
        &self,
        what: &'static str,
        program: &'static str,
        arguments: &[&str],
        allowed: u64,
    ) -> Result<Stream, ApiError> {
        let mut command = Command::new(program);
        surround(&mut command);
        command.args(arguments).arg(by_number(self.file.as_raw_fd()));
        self.confine(&mut command, &[]);
        Stream::start((what, program), &mut command, allowed, self.cancel).map_err(|error| not_run(program, &error))
    }
}

/// Leaves a tool nothing of the agent's surroundings.
pub(in crate::image) fn surround(command: &mut Command) {
    command.current_dir("/").env_clear().env("PATH", PATH).env("LC_ALL", "C");
}

/// The error of a tool that could not be started.
pub(in crate::image) fn not_run(program: &str, error: &io::Error) -> ApiError {
    if error.kind() != io::ErrorKind::NotFound {
        return ApiError::internal(format!("{program} cannot be run: {error}"));
    }
    ApiError::failed_precondition(format!("the host lacks {program}"))
        .hint(format!("install it: apt-get install {}", programs::package(program)))
}

/// Waits for a tool's end, which comes when it is told to `stop` or its time is over.
fn wait(program: &str, child: &mut Child, stop: impl Fn() -> bool) -> Result<ExitStatus, ApiError> {
    let (began, mut pause) = (Instant::now(), Duration::from_millis(1));
    loop {
        let ended = child.try_wait();
        if let Some(status) = ended.map_err(|error| ApiError::internal(format!("{program} is lost: {error}")))? {
            return Ok(status);
        }
        let late = began.elapsed() > TIME;
        if late || stop() {
            let pid = Pid::from_raw(child.id().cast_signed());
            if let Err(error) =
                killpg(pid, Signal::SIGKILL).map_err(io::Error::from).and_then(|()| child.wait().map(drop))
            {
                tracing::warn!(%error, program, "a tool cannot be ended");
            }
            return Err(if late {
                ApiError::deadline_exceeded(format!("{program} had not ended after {} s", TIME.as_secs()))
            } else {
                ApiError::cancelled("the staging was discarded")
            });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LOOK_MAX);
    }
}

/// The user of one staging's tools: another one's has no hold on them.
fn user(operation: OperationId) -> u32 {
    let bytes = operation.0.as_bytes();
    FIRST_ID + u32::from(u16::from_be_bytes([bytes[14], bytes[15]]))
}

fn confine(keep: &[RawFd], user: Option<u32>, bytes: u64, parent: Pid) -> io::Result<()> {
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    for descriptor in keep {
        // SAFETY: the descriptor is open in this process, and is only looked at for the length of the call.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(*descriptor) };
        fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    for (resource, limit) in [
        (Resource::RLIMIT_CPU, TIME.as_secs()),
        (Resource::RLIMIT_AS, MEMORY),
        (Resource::RLIMIT_FSIZE, bytes),
        // Below numbers that are open already: those stay, and the ones in between close when the program begins.
        (Resource::RLIMIT_NOFILE, DESCRIPTORS),
        (Resource::RLIMIT_CORE, 0),
    ] {
        setrlimit(resource, limit, limit)?;
    }
    if let Some(user) = user {
        setrlimit(Resource::RLIMIT_NPROC, PROCESSES, PROCESSES)?;
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)?;
        alone::become_first(parent)?;
        setgroups(&[])?;
        setgid(Gid::from_raw(user))?;
        setuid(Uid::from_raw(user))?;
    }
    prctl::set_no_new_privs()?;
    // After the change of the user, which takes it away.
    if user.is_some() { Ok(prctl::set_pdeathsig(Signal::SIGKILL)?) } else { end_with(parent) }
}

/// Ends this process when the thread that started it ends. To be called between fork and exec.
pub(in crate::image) fn end_with(parent: Pid) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
}

/// What is kept of it, and whether that is not all.
fn bounded(from: &mut impl Read) -> (Vec<u8>, bool) {
    let mut kept = Vec::new();
    let read = from.take(OUTPUT as u64).read_to_end(&mut kept).and_then(|_| io::copy(from, &mut io::sink()));
    let cut = read.map_or_else(
        |error| {
            tracing::debug!(%error, "what a tool said was cut off");
            true
        },
        |dropped| dropped > 0,
    );
    (kept, cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patient(dir: &Path, cancel: &CancellationToken, run: impl FnOnce(&Patient<'_>)) {
        let path = dir.join("fs");
        File::create(&path).unwrap().set_len(8 << 20).unwrap();
        let patient = Patient::take(&path, OperationId::new(), 1_700_000_000, cancel).unwrap();
        run(&patient);
        patient.give_back().unwrap();
    }

    #[test]
    fn a_tool_has_the_filesystem_and_what_it_is_given_and_nothing_else() {
        let (dir, cancel) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        patient(dir.path(), &cancel, |patient| {
            let said = patient.run("mke2fs", &["-q", "-F", "-t", "ext4"], &[], b"", &[]).unwrap();
            assert_eq!(said.code(), Some(0), "{said:?}");
            let given = Given::new(b"from outside").unwrap();
            let script = format!("write {} there\ncat there\nwrite /etc/shadow shadow\n", given.path());
            let said = patient.run("debugfs", &["-w", "-f", "-"], &[], script.as_bytes(), &[given]).unwrap();
            let text = String::from_utf8_lossy(&said.output);
            assert!(text.contains("from outside"), "{text}");
            if nix::unistd::geteuid().is_root() {
                assert!(text.contains("Permission denied"), "{text}");
                let said = patient
                    .run(
                        "sh",
                        &["-c", "id -u; cat /proc/net/dev; ulimit -f; for n in $(seq 99); do sleep 9 & done"],
                        &[],
                        b"",
                        &[],
                    )
                    .unwrap();
                let text = String::from_utf8_lossy(&said.output).into_owned();
                assert!(!text.starts_with("0\n") && !text.contains("eth"), "{text}");
                assert!(text.to_lowercase().contains("fork"), "it has as many processes as it likes: {text}");
            }
        });
    }

    #[test]
    fn what_a_tool_leaves_behind_ends_with_it_and_its_end_is_told() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: only root has namespaces of processes");
            return;
        }
        let (dir, cancel) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        patient(dir.path(), &cancel, |patient| {
            let began = Instant::now();
            let said = patient.run("sh", &["-c", "setsid sleep 1000 & echo $$; exit 3"], &[], b"", &[]).unwrap();
            assert_eq!((said.code(), said.last_line().as_str()), (Some(3), "1"), "{said:?}");
            let said = patient.run("sh", &["-c", "sh -c 'kill -SEGV $$'; exit $?"], &[], b"", &[]).unwrap();
            assert_eq!(said.code(), Some(139), "{said:?}");
            assert!(began.elapsed() < Duration::from_secs(300), "something went on: {:?}", began.elapsed());
        });
    }

    #[test]
    fn a_tool_that_goes_on_is_ended_and_a_talkative_one_is_cut_off() {
        let (dir, cancel) = (tempfile::tempdir().unwrap(), CancellationToken::new());
        patient(dir.path(), &cancel, |patient| {
            let said = patient.run("sh", &["-c", "head -c 9000000 /dev/zero"], &[], b"", &[]).unwrap();
            assert_eq!((said.code(), said.output.len(), said.cut), (Some(0), OUTPUT, true));
            let missing = patient.run("warren-no-such-tool", &[], &[], b"", &[]).unwrap_err();
            assert!(missing.message.contains("warren-no-such-tool"), "{missing:?}");
            let missing = not_run("sqfs2tar", &io::ErrorKind::NotFound.into());
            assert_eq!(missing.code, contract::ErrorCode::FailedPrecondition);
            assert!(missing.hint.is_some_and(|hint| hint.ends_with("squashfs-tools-ng")));
            cancel.cancel();
            let ended = patient.run("sh", &["-c", "sleep 1000"], &[], b"", &[]).unwrap_err();
            assert_eq!(ended.code, contract::ErrorCode::Cancelled);
        });
    }
}

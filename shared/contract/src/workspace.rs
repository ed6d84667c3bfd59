//! Ways into a VM: requests to `workspace-service`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    deadline,
    direct::Opened,
    id::SessionId,
    job::{self, Attach, Job, JobName, Jobs},
    operation::default_wait_ms,
    verb::verbs,
};

/// The most bytes of each output stream that [`Exec`] collects; a message holds 1 MiB.
pub const EXEC_OUTPUT_MAX: usize = 256 * 1024;

/// A command to run in a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// The program and its arguments; never empty. The program is looked up in the guest's `PATH`.
    pub argv: Vec<String>,
    /// More environment, each `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory; left out, the user's home or `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// User name or `uid[:gid]`; left out, root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Give it a terminal of this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<TerminalSize>,
    /// How long it may run, in milliseconds, whoever is attached: then its process group is sent SIGTERM, and SIGKILL
    /// [`job::TERM_GRACE`] later, and it ends with the code [`job::TIMED_OUT`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Keep it as a job of this name: it runs on when whoever started it goes, and can be attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobName>,
    /// Nobody is attached to it at first; it is kept, and gets a name where it has none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detach: bool,
    /// Where it is detached: its standard input stays open for who attaches, instead of being at its end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub open_stdin: bool,
}

/// A terminal's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// Where a TCP connection from inside a guest leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpTarget {
    /// A name or address as the guest knows it; left out, the guest itself.
    #[serde(default = "loopback")]
    pub host: String,
    /// The port (1 to 65535).
    pub port: u16,
}

fn loopback() -> String {
    "127.0.0.1".to_owned()
}

impl TcpTarget {
    /// A port of the guest itself.
    pub fn own(port: u16) -> Self {
        Self { host: loopback(), port }
    }
}

impl std::fmt::Display for TcpTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Files to take out of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PackFiles {
    /// The absolute path of a file or directory; the archive's entries begin with its last name.
    pub path: String,
    /// Take what symbolic links lead to instead of the links.
    #[serde(default)]
    pub follow: bool,
    /// Take a directory's contents without its own name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub contents: bool,
}

/// Where files go that are put into a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnpackFiles {
    /// An absolute path. A directory that is there is unpacked into; else the archive's only top entry gets this name,
    /// replacing a file that has it.
    pub path: String,
    /// Whose the files become, a user name or `uid[:gid]`; left out, what the archive says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// The archive is a directory's contents: the directory `path` is made when it is missing.
    #[serde(default)]
    pub contents: bool,
}

/// Asks whether a workspace has changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LookRequest {
    /// Its directory, absolute.
    pub path: String,
}

/// What a byte stream is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SessionKind {
    /// A process in the guest; the stream carries [`crate::frame`] frames both ways.
    Exec(Command),
    /// A command that runs already, or has ended and is still remembered; frames as of `exec`.
    Attach(Attach),
    /// guest-agent's ssh server; the stream carries the SSH protocol. Who may open it is logged in
    /// without a key, because the bus has decided that already.
    Ssh {},
    /// A TCP connection from inside the guest; the stream carries its bytes.
    Tcp(TcpTarget),
    /// A file or directory of the guest as a tar archive, in `stdout` frames; `stderr` frames say what was left out, and
    /// `exit` whether all went well.
    Pack(PackFiles),
    /// A tar archive, sent as `stdin` frames with an empty one at its end, becomes files of the guest; `exit` says whether
    /// all went well.
    Unpack(UnpackFiles),
    /// Whether a workspace has changes, looked at without an operation and without taking any out: one `stdout` frame with a
    /// [`crate::worktree::Looked`] as JSON, then `exit`. Guests of an older version refuse it.
    Look(LookRequest),
    /// The serial console itself: what is typed goes to it, what it says comes back. One client at a time.
    Console {},
    /// The console log, from its beginning (or its last `tail_bytes`) and on while `follow`.
    Logs {
        /// Go on with what is written from now on.
        #[serde(default)]
        follow: bool,
        /// Only the last so many bytes of what is there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tail_bytes: Option<u64>,
    },
}

/// Opens a byte stream to a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenRequest {
    /// The VM's name or id.
    pub vm: String,
    /// The stream, minted by the caller, who listens on `warren.stream.<session>.opener` already.
    pub session: SessionId,
    /// What to connect it to.
    pub kind: SessionKind,
    /// Whether the reply may offer a direct connection to the host. The opener then says nothing on the bus until it has
    /// decided for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub direct: bool,
}

/// Runs a command and collects what it prints, for callers without byte streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The VM's name or id.
    pub vm: String,
    /// What to run; a terminal is refused here unless it is detached.
    pub command: Command,
    /// Its standard input, as text; none where it is detached.
    #[serde(default)]
    pub stdin: String,
    /// How long it may run, in milliseconds; then it is killed. One that is detached is bounded by the command's own
    /// `timeout_ms` alone.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// What a collected command did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecReply {
    /// Its exit code; 128 + signal number where a signal ended it. 0 where it was detached and has not ended.
    pub exit_code: i32,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
    /// Whether output beyond [`EXEC_OUTPUT_MAX`] bytes a stream was dropped.
    pub truncated: bool,
    /// The job it is, where it was detached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobName>,
}

verbs! {
    /// Opens a byte stream to a VM: a process, its ssh server or its console log.
    Open = "warren.workspace.open", false, deadline::QUICK, OpenRequest => Opened;
    /// Runs a command in a VM and collects what it prints.
    Exec = "warren.workspace.exec", false, deadline::WAITING, ExecRequest => ExecReply;
    /// Lists the commands that run in a VM, and those that have ended and are still remembered.
    ListJobs = "warren.workspace.jobs", false, deadline::QUICK, job::ListRequest => Jobs;
    /// Sends a signal to the process group of a job.
    KillJob = "warren.workspace.job_kill", false, deadline::QUICK, job::KillRequest => Job;
}

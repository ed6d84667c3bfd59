//! Ways into a VM: requests to `workspace-service`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{deadline, host::Empty, id::SessionId, operation::default_wait_ms, verb::verbs};

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

/// What a byte stream is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SessionKind {
    /// A process in the guest; the stream carries [`crate::frame`] frames both ways.
    Exec(Command),
    /// guest-agent's ssh server; the stream carries the SSH protocol. Who may open it is logged in
    /// without a key, because the bus has decided that already.
    Ssh {},
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
}

/// Runs a command and collects what it prints, for callers without byte streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The VM's name or id.
    pub vm: String,
    /// What to run; a terminal is refused here.
    pub command: Command,
    /// Its standard input, as text.
    #[serde(default)]
    pub stdin: String,
    /// How long it may run, in milliseconds; then it is killed.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// What a collected command did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecReply {
    /// Its exit code; 128 + signal number where a signal ended it.
    pub exit_code: i32,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
    /// Whether output beyond [`EXEC_OUTPUT_MAX`] bytes a stream was dropped.
    pub truncated: bool,
}

verbs! {
    /// Opens a byte stream to a VM: a process, its ssh server or its console log.
    Open = "warren.workspace.open", false, deadline::QUICK, OpenRequest => Empty;
    /// Runs a command in a VM and collects what it prints.
    Exec = "warren.workspace.exec", false, deadline::WAITING, ExecRequest => ExecReply;
}

//! **Jobs**: commands of a guest that somebody may come back to.
//!
//! Every command that guest-agent runs is a job while it runs. One that was given a name, or begun *detached*, is *kept*: it runs on when
//! nobody is attached, its output is remembered up to [`KEPT_OUTPUT`] bytes (the beginning goes first, and a reader is told
//! how much is missing), and for [`FINISHED_FOR`] after its end it can still be read. Jobs live in guest-agent's memory: they outlive clients
//! and host-agents, but neither the VM's end nor guest-agent's, which ends them.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    id::VmId,
    name::{NameError, name, refuse},
    workspace::{Command, TerminalSize},
};

/// The bytes of output a kept job remembers: some thousand lines, and little in a small VM.
pub const KEPT_OUTPUT: usize = 512 * 1024;
/// How many kept jobs may run at once in a guest.
pub const RUNNING_MAX: usize = 32;
/// How many ended jobs a guest remembers; then the first to have ended is forgotten.
pub const FINISHED_MAX: usize = 32;
/// For how long: a night and a morning.
pub const FINISHED_FOR: Duration = Duration::from_secs(24 * 3600);
/// The exit code of a command whose time ran out, as timeout(1) has it.
pub const TIMED_OUT: i32 = 124;
/// How long a command has between SIGTERM and SIGKILL when its time is up.
pub const TERM_GRACE: Duration = Duration::from_secs(5);
/// The longest time a command can be given, in milliseconds: 30 days.
pub const TIMEOUT_MAX_MS: u64 = 30 * 24 * 3600 * 1000;

name!(
    /// What a job is called in its VM: eight hexadecimal digits where nobody chose a name.
    JobName,
    job_name,
    r"^[a-z0-9][a-z0-9._-]{0,62}$"
);

fn job_name(text: &str) -> Result<String, NameError> {
    if text.is_empty() || text.len() > 63 {
        return Err(refuse("job name", text, "must have 1 to 63 characters"));
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.')) {
        return Err(refuse("job name", text, "may only hold a-z, 0-9, '-', '_' and '.'"));
    }
    if !text.as_bytes()[0].is_ascii_alphanumeric() {
        return Err(refuse("job name", text, "must begin with a letter or digit"));
    }
    Ok(text.to_owned())
}

impl JobName {
    /// A name made of the random end of a fresh id: short enough to type.
    pub fn mint() -> Self {
        Self(VmId::new().tail())
    }
}

/// How a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Its process runs.
    Running,
    /// It has ended; see [`Job::exit_code`].
    Ended,
    /// guest-agent was ended while it ran. Its processes were ended then, and its output is gone.
    Lost,
}

impl JobState {
    /// As it is written in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Ended => "ended",
            Self::Lost => "lost",
        }
    }
}

/// A command of a guest, as its guest-agent tells. A guest can lie; this is only shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// Its name.
    pub name: JobName,
    /// The command as a line, cut when it is long.
    pub command: String,
    /// Whose process it is.
    pub user: String,
    /// How it is.
    pub state: JobState,
    /// Exit code; 128 + signal number where a signal ended it; 124 where its time ran out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// What else there is to say about its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Whether it goes on without anybody attached, and is remembered after its end.
    pub kept: bool,
    /// Whether it has a terminal.
    pub tty: bool,
    /// How many are attached.
    pub attached: u32,
    /// How long ago it was started, in milliseconds.
    pub age_ms: u64,
    /// How long ago it ended, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
    /// How many bytes it has printed.
    pub output_bytes: u64,
    /// How many of these, from the beginning, are remembered no more.
    pub dropped_bytes: u64,
}

/// Follows a job: a stream of [`crate::frame`] frames, as of a command that was just started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// Which.
    pub job: JobName,
    /// Send it input, signals and sizes too. One may at a time: whoever comes last does, and who had it before is told and left
    /// without. While it is attached the job's output waits for it; others who do not keep up miss some.
    #[serde(default)]
    pub write: bool,
    /// Go on with what it prints from now on; else the stream ends with what there is.
    #[serde(default = "yes")]
    pub follow: bool,
    /// Only the last so many bytes of what is remembered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail_bytes: Option<u64>,
    /// The size of the terminal it is shown on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<TerminalSize>,
}

fn yes() -> bool {
    true
}

/// What is asked of a guest's jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum JobAsk {
    /// All of them.
    List {},
    /// Start one that nobody is attached to; answered with it.
    Start(Box<Command>),
    /// Send its process group a signal; answered with it.
    Signal {
        /// Which.
        job: JobName,
        /// Number as on Linux x86-64, 1 to 64.
        number: u8,
    },
}

/// Asks a host for a guest's jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AskRequest {
    /// The VM.
    pub vm: VmId,
    /// What is asked.
    pub ask: JobAsk,
}

/// Jobs of one VM, the youngest last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Jobs {
    /// Them.
    pub jobs: Vec<Job>,
}

/// Lists the jobs of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// The VM's name or id.
    pub vm: String,
}

/// Signals a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KillRequest {
    /// The VM's name or id.
    pub vm: String,
    /// The job's name.
    pub job: JobName,
    /// A signal's name (`TERM`, `SIGHUP`) or number.
    #[serde(default = "term")]
    pub signal: String,
}

fn term() -> String {
    "TERM".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_words_and_minted_ones_are_names() {
        for good in ["build", "0a1b2c3d", "ci.1_x-2"] {
            assert_eq!(good.parse::<JobName>().unwrap().as_str(), good);
        }
        for bad in ["", "-x", "a/b", "A", "..", "a b", &"x".repeat(64)] {
            assert!(bad.parse::<JobName>().is_err(), "{bad}");
        }
        assert!(JobName::mint().as_str().parse::<JobName>().is_ok());
    }
}

//! Where a VM **stands**, and what happens when it ends by itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a VM stands. The transitions are `domain::state` of vm-lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Reserved; its create is not done yet.
    Creating,
    /// A start is under way.
    Starting,
    /// Its VMM runs and its guest was ready.
    Running,
    /// Its guest's processors stand still; it keeps its memory.
    Paused,
    /// A stop is under way.
    Stopping,
    /// Its VMM has ended as asked, or its guest powered off.
    Stopped,
    /// Its VMM ended by itself with an error, or its last start failed.
    Failed,
    /// A delete is under way.
    Deleting,
}

impl VmState {
    /// All states.
    pub const ALL: [Self; 8] = [
        Self::Creating,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Stopped,
        Self::Failed,
        Self::Deleting,
    ];

    /// The state as it stands on the wire and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }
}

impl std::str::FromStr for VmState {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| format!("{text:?} is no VM state"))
    }
}

/// What happens when a VM ends although nobody stopped it. Restarts back off: 1 s, 2 s, … up to 5 min, and from the
/// start again after 10 min of running. A VM that somebody stopped stays stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// It stays as it is.
    #[default]
    No,
    /// It is started again when its VMM died, its kernel panicked, its host went down or a start failed.
    OnFailure,
    /// It is started again also when its guest powered off by itself.
    Always,
}

impl RestartPolicy {
    /// The policy as it stands on the wire and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::OnFailure => "on-failure",
            Self::Always => "always",
        }
    }
}

impl std::str::FromStr for RestartPolicy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::No, Self::OnFailure, Self::Always]
            .into_iter()
            .find(|policy| policy.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not one of no, on-failure, always"))
    }
}

//! **Idle limits**: what happens to a VM that nobody uses. A VM is in use at a moment when
//!
//! * a session into it is open over the bus (`exec`, `ssh`, `console`, `cp`, `port-forward`; its log is none), a connection to one of its
//!   published ports, or a logged-in ssh connection to guest-agent's own server, or
//! * its VMM took more processor time, or its guest sent or received more, over the last half minute than one that has nothing to
//!   do (the thresholds are host-agent's `activity`).
//!
//! It is idle since the last such moment, or since it was ready, resumed or given another limit, whatever is later. Only a VM
//! that runs is idle; time in which nobody looked, as its host-agent was down, does not count.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    deadline,
    id::{HostId, VmId},
    verb::verbs,
};

/// The shortest and the longest idle limit, in seconds.
pub const IDLE_SECONDS: std::ops::RangeInclusive<u64> = 10..=365 * 24 * 3600;

/// What becomes of a VM that was idle for as long as its limit says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IdleAction {
    /// Its guest powers off. As for any stop that was asked for, no restart policy starts it again.
    #[default]
    Stop,
    /// It is deleted with its disk.
    Delete,
    /// It is paused: it keeps its memory.
    Pause,
}

impl IdleAction {
    /// The action as it stands on the wire and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Delete => "delete",
            Self::Pause => "pause",
        }
    }
}

impl std::str::FromStr for IdleAction {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Stop, Self::Delete, Self::Pause]
            .into_iter()
            .find(|action| action.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not one of stop, delete, pause"))
    }
}

/// How long a VM may be idle, and what happens then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdleLimit {
    /// How long, in seconds.
    pub seconds: u64,
    /// What happens.
    pub action: IdleAction,
}

/// A time as people say it, in its largest whole unit: `90 s`, `30 min`, `2 h`.
pub fn in_words(seconds: u64) -> String {
    match seconds {
        0 => "0 s".to_owned(),
        _ if seconds.is_multiple_of(3600) => format!("{} h", seconds / 3600),
        _ if seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        _ => format!("{seconds} s"),
    }
}

/// How long a VM is idle, as its host knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Idleness {
    /// The VM.
    pub vm: VmId,
    /// For so many milliseconds; a duration, so that the host's clock does not matter.
    pub idle_ms: u64,
}

/// Tells how long the running VMs of a host are idle.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ActivityRequest {
    /// The host.
    pub host: HostId,
    /// As registered.
    pub incarnation: Uuid,
    /// All VMs that run.
    pub vms: Vec<Idleness>,
}

/// What the host is to look at more closely.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ActivityReply {
    /// The VMs with an idle limit: their guests are asked for ssh connections before they count as idle.
    #[serde(default)]
    pub limited: Vec<VmId>,
}

verbs! {
    /// Tells how long VMs are idle; for host-agents.
    Activity = "warren.host.activity", true, deadline::QUICK, ActivityRequest => ActivityReply;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_their_largest_whole_unit() {
        for (seconds, words) in [(10, "10 s"), (90, "90 s"), (1800, "30 min"), (5400, "90 min"), (7200, "2 h")] {
            assert_eq!(in_words(seconds), words);
        }
    }
}

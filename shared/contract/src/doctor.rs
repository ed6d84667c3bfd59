//! What `doctor` finds: checks with a verdict and a mend, and leaks, objects that nobody owns.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    deadline,
    id::{HostId, ImageId, VmId},
    name::VmName,
    verb::verbs,
};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// It works, but not as well or as safely as it could.
    Warn,
    /// Something does not work.
    Fail,
}

impl Verdict {
    /// The verdict as it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// What was looked at, e.g. `kvm`.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Check {
    fn new(name: &str, verdict: Verdict, message: impl Into<String>) -> Self {
        Self { name: name.to_owned(), verdict, message: message.into(), mend: None }
    }

    /// A check that passed.
    pub fn pass(name: &str, message: impl Into<String>) -> Self {
        Self::new(name, Verdict::Pass, message)
    }

    /// A check that found something worth mending.
    pub fn warn(name: &str, message: impl Into<String>) -> Self {
        Self::new(name, Verdict::Warn, message)
    }

    /// A check that found something broken.
    pub fn fail(name: &str, message: impl Into<String>) -> Self {
        Self::new(name, Verdict::Fail, message)
    }

    /// With what to do about it.
    #[must_use]
    pub fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }
}

/// What kind of object a leak is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeakKind {
    /// A VMM process of a VM that is not here.
    Process,
    /// A tap in the lab's namespace that is neither the pool's nor a VM's.
    Tap,
    /// A VM's directory without a row.
    Vm,
    /// A row whose VM has no directory on its host.
    Row,
    /// A kept disk's file without a row.
    Disk,
    /// A control group of a VM that is not here.
    Cgroup,
    /// A published image's directory without a row.
    Image,
    /// A staging directory that no pull works in.
    Staging,
}

/// An object that nobody owns, or an owner that lacks its object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Leak {
    /// What it is.
    pub kind: LeakKind,
    /// Which one.
    pub what: String,
    /// Whether it was removed.
    pub fixed: bool,
    /// Why it was not removed, or is not removed by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What an agent is told of the rows that concern its host, so that it can compare.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExamineRequest {
    /// Every VM with a row on this host.
    pub vms: Vec<VmId>,
    /// Every kept disk with a row on this host.
    pub disks: Vec<VmName>,
    /// Every image with a replica row on this host.
    pub images: Vec<ImageId>,
    /// Remove what nobody owns.
    pub fix: bool,
}

/// What was found on one host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Findings {
    /// The checks.
    pub checks: Vec<Check>,
    /// The leaks.
    pub leaks: Vec<Leak>,
    /// The host's clock when it was done, Unix time in milliseconds. Left out by agents that know of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_ms: Option<u64>,
}

/// Examines hosts.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DoctorRequest {
    /// Only this host; left out, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// Mend what can be mended safely: remove what nobody owns. Then everything is looked at again.
    #[serde(default)]
    pub fix: bool,
}

/// One host's findings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostFindings {
    /// The host; absent for what concerns the lab as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// What was found.
    #[serde(flatten)]
    pub findings: Findings,
}

/// All findings.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct DoctorReply {
    /// The lab first, then host by host.
    pub hosts: Vec<HostFindings>,
}

verbs! {
    /// Examines the lab and its hosts, and mends what can be mended safely.
    Doctor = "warren.host.doctor", false, deadline::AGENT, DoctorRequest => DoctorReply;
}

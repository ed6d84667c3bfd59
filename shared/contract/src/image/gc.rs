//! **Garbage collection** of images: what rows and hosts have of images that the other lacks, and what was done about it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::HostId;

/// Compares rows and hosts now, and mends what can be mended safely. The reconciler does so by itself now and then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GcRequest {
    /// Only tell.
    #[serde(default)]
    pub dry_run: bool,
}

/// What kind of thing was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GcKind {
    /// The staging of an operation that has ended, or that the lab does not know.
    Staging,
    /// An image's or a kernel's directory without a row; it is removed.
    Directory,
    /// A row whose host lacks the image or kernel, or has it damaged; it is offered to nobody until a pull, an import or a VM that needs it brings it back.
    Missing,
    /// A row noted as missing whose directory is whole again.
    Returned,
    /// A row of a host that the lab does not have any more.
    HostGone,
    /// An image that lost its last name long ago and that no VM uses, or a kernel that came along with one and that nothing uses any more.
    Unnamed,
    /// Files of a deleted image or kernel that their host has not removed yet.
    Owed,
    /// Something in a host's directories of images that is not Warren's; it stays.
    Stray,
}

impl GcKind {
    /// Every kind, in the order they are told.
    pub const ALL: [Self; 8] = [
        Self::Staging,
        Self::Directory,
        Self::Missing,
        Self::Returned,
        Self::HostGone,
        Self::Unnamed,
        Self::Owed,
        Self::Stray,
    ];

    /// The kind as it stands on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Staging => "staging",
            Self::Directory => "directory",
            Self::Missing => "missing",
            Self::Returned => "returned",
            Self::HostGone => "host_gone",
            Self::Unnamed => "unnamed",
            Self::Owed => "owed",
            Self::Stray => "stray",
        }
    }
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GcOutcome {
    /// It would be mended, if this were not a dry run.
    Pending,
    /// It was mended; of a missing replica: noted, so that nobody is offered it.
    Mended,
    /// It stays as it is; `why` says why.
    Left,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GcItem {
    /// What kind of thing.
    pub kind: GcKind,
    /// Where; absent for what concerns the lab as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// Which one: an operation, an image, `kernel` and its id, or a path below the host's state directory.
    pub what: String,
    /// What it takes of the host's disk, in bytes, where that is known.
    #[serde(default)]
    pub disk_bytes: u64,
    /// What became of it.
    pub outcome: GcOutcome,
    /// Why it stays, or what is to be done about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// How many of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GcCount {
    /// The kind.
    pub kind: GcKind,
    /// How many were found.
    pub found: u64,
    /// How many of them were mended.
    pub mended: u64,
}

/// One host, as it was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GcHost {
    /// The host.
    pub host: HostId,
    /// Why it was not looked at: it is down, or has no answer to give. Absent when it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// The images in its directories.
    pub images: u64,
    /// What they take of its disk, in bytes.
    pub image_bytes: u64,
    /// The stagings in its directories, those under way too.
    pub stagings: u64,
    /// What they take of its disk, in bytes.
    pub staging_bytes: u64,
    /// What the blobs take of its disk that it keeps for the next pull, in bytes.
    #[serde(default)]
    pub cache_bytes: u64,
    /// The kernels in its directory.
    #[serde(default)]
    pub kernels: u64,
    /// What they and their stagings take of its disk, in bytes.
    #[serde(default)]
    pub kernel_bytes: u64,
}

/// What was found, and what was done about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GcReport {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// How many of each kind; kinds of which there are none are left out.
    pub counts: Vec<GcCount>,
    /// What was found, up to [`GC_ITEMS_MAX`].
    #[serde(default)]
    pub items: Vec<GcItem>,
    /// How many more there are.
    #[serde(default)]
    pub left_off: u64,
    /// Every host of the lab.
    pub hosts: Vec<GcHost>,
}

/// How many items a report has at the most: about half of what a NATS message holds.
pub const GC_ITEMS_MAX: usize = 1000;

impl GcReport {
    /// How many of a kind.
    pub fn count(&self, kind: GcKind) -> GcCount {
        let none = GcCount { kind, found: 0, mended: 0 };
        self.counts.iter().find(|count| count.kind == kind).copied().unwrap_or(none)
    }
}

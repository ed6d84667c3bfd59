//! Commands to one host-agent: `warren.agent.<host-id>.<area>.<verb>`.
//!
//! Each command may be repeated: the agent answers a repeat with the effect of the first. Long work
//! (staging, booting, powering off) goes on in the agent whether or not anybody waits; the command is a
//! long-poll of [`crate::deadline::AGENT_POLL_MS`] that answers with what is true now. A command with a
//! lower epoch than the agent has seen for its resource is refused with `aborted`.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    deadline,
    direct::Opened,
    doctor::{ExamineRequest, Findings},
    error::ApiError,
    feature::{Features, PublishedPort},
    guest::GuestFacts,
    host::Empty,
    id::{ImageId, OperationId, SessionId, VmId},
    image::{ImageConfig, ImageSource},
    job,
    name::VmName,
    operation::Progress,
    postmortem::{Evidence, EvidenceRequest},
    size::MebiBytes,
    usage::{SampleRequest, Samples},
    verb::agent_verbs,
    workspace::SessionKind,
    worktree::{ExportOrder, ImportOrder, RemoveOrder, TransferStatus},
};

/// Who commands: the operation and its claim's epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fence {
    /// The operation.
    pub operation: OperationId,
    /// The epoch of its claim on its resource.
    pub epoch: i64,
}

/// Starts staging an image, or asks how it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageRequest {
    /// The pull; its operation id names the staging directory.
    pub fence: Fence,
    /// Where from.
    pub source: ImageSource,
    /// How long to hold the reply while nothing ends, in milliseconds.
    pub wait_ms: u64,
}

/// How a staging goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum StageStatus {
    /// Still at it.
    Running {
        /// `resolving`, `downloading`, `writing`.
        phase: String,
        /// Bytes.
        progress: Progress,
    },
    /// Whole and synced in the staging directory.
    Done {
        /// What it is.
        image: StagedImage,
    },
    /// Failed; the staging directory is gone.
    Failed {
        /// Why.
        error: ApiError,
    },
}

/// A staged image; stands in `manifest.json` beside the root filesystem too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StagedImage {
    /// Digest of the manifest for this architecture.
    pub digest: String,
    /// OCI architecture.
    pub architecture: String,
    /// Size of the root filesystem, in bytes.
    pub rootfs_bytes: u64,
    /// What its author asked to be run.
    pub config: ImageConfig,
}

/// Makes a staged image visible under its id: one rename, synced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishRequest {
    /// The pull.
    pub fence: Fence,
    /// The directory's final name.
    pub image: ImageId,
}

/// Ends a staging and removes its directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiscardRequest {
    /// The pull.
    pub fence: Fence,
}

/// Removes a published image's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveImageRequest {
    /// The operation.
    pub fence: Fence,
    /// The image.
    pub image: ImageId,
}

/// All a host needs to know to run a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// Its id.
    pub id: VmId,
    /// Its name, which becomes the guest's host name.
    pub name: VmName,
    /// The image its disk is a clone of.
    pub image: ImageId,
    /// What the image's author asked to be run.
    pub config: ImageConfig,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: MebiBytes,
    /// Disk.
    pub disk: MebiBytes,
    /// Its address with the subnet's prefix length.
    #[schemars(with = "String")]
    pub address: Ipv4Net,
    /// Gateway and name server.
    pub gateway: Ipv4Addr,
    /// `02:…`.
    pub mac: String,
    /// The lab's DNS domain.
    pub domain: String,
    /// OpenSSH public keys that may log in.
    pub ssh_keys: Vec<String>,
    /// What it has beside its size.
    #[serde(default)]
    pub features: Features,
}

/// Makes a VM's directory, handles, disk, tap and config drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProvisionRequest {
    /// The operation.
    pub fence: Fence,
    /// The VM.
    pub spec: VmSpec,
}

/// A provisioned VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Provisioned {
    /// The public half of its ssh host key, `ssh-ed25519 …`; the private half stays on the host.
    pub ssh_host_key: String,
}

/// Names a VM in a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VmCommand {
    /// The operation.
    pub fence: Fence,
    /// The VM.
    pub vm: VmId,
    /// How long to hold the reply while nothing changes, in milliseconds; 0 answers at once.
    #[serde(default)]
    pub wait_ms: u64,
}

/// Changes what a VM is to be: at once what can be, such as ports and a larger disk, the rest from its next start on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdjustRequest {
    /// The operation.
    pub fence: Fence,
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: VmName,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: MebiBytes,
    /// Disk.
    pub disk: MebiBytes,
    /// Ports of the host that lead into it; these change at once. Left out by services that know of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PublishedPort>>,
}

/// A changed VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Adjusted {
    /// The size of its disk now: never less than it was, as a disk only grows. Left out by agents that know of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<MebiBytes>,
    /// What did not take effect at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Stops a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// The operation.
    pub fence: Fence,
    /// The VM.
    pub vm: VmId,
    /// How long the guest has to power itself off before its VMM is ended, in milliseconds; 0 ends it at once.
    pub grace_ms: u64,
    /// How long to hold the reply while it is still on, in milliseconds.
    pub wait_ms: u64,
}

/// Where a VM stands on its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostVmState {
    /// The agent has no directory of it.
    Absent,
    /// Its directory is there, no VMM was started or the last one ended as asked or by the guest's power-off.
    Off,
    /// Its VMM runs, its guest has not been ready yet.
    Booting,
    /// Its guest is ready.
    Ready,
    /// Its guest was ready, and its processors stand still.
    Paused,
    /// Its VMM ended by itself with an error, was killed by somebody, or its guest did not get ready in time.
    Failed,
}

/// What is true of a VM on its host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VmObservation {
    /// The VM.
    pub vm: VmId,
    /// Where it stands.
    pub state: HostVmState,
    /// The highest epoch the agent has seen for it.
    pub epoch: i64,
    /// Its VMM's process id, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What the guest said of itself when it was ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestFacts>,
    /// Why it failed or ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The console's last lines, when it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_tail: Option<String>,
}

/// Opens a byte stream into a guest, or onto its console log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OpenRequest {
    /// The VM.
    pub vm: VmId,
    /// The byte stream; its opener listens already.
    pub session: SessionId,
    /// What to connect it to.
    pub kind: SessionKind,
    /// Whether the reply may offer a direct connection.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub direct: bool,
}

/// Every VM the agent has a directory of.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Observations {
    /// In no order.
    pub vms: Vec<VmObservation>,
}

/// That a host-agent lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Alive {
    /// For how long this process has taken commands, in milliseconds: what was commanded before that was lost with its predecessor.
    pub serving_ms: u64,
}

/// Names a kept disk in a command. It has no fence: vm-lifecycle holds the disk's row while it commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskCommand {
    /// The disk.
    pub disk: VmName,
}

/// Where a host takes the files of a workspace from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ImportFrom {
    /// The opener of that byte stream, which speaks the tree protocol in frames.
    Session(SessionId),
    /// A directory of this host, below one of those its operator allows.
    Directory(String),
}

/// Begins to put a tree of files into a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// The VM.
    pub vm: VmId,
    /// Where the files come from.
    pub from: ImportFrom,
    /// What to do with them.
    pub order: ImportOrder,
}

/// Begins to take the changes of a workspace out of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportChangesRequest {
    /// The VM.
    pub vm: VmId,
    /// The byte stream, whose opener takes them.
    pub session: SessionId,
    /// What to take.
    pub order: ExportOrder,
}

/// Has a guest forget a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForgetRequest {
    /// The VM.
    pub vm: VmId,
    /// Which.
    pub order: RemoveOrder,
}

/// Names a transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TransferRequest {
    /// The VM.
    pub vm: VmId,
    /// The operation whose transfer it is.
    pub operation: OperationId,
    /// How long to hold the reply while it goes on, in milliseconds; at most [`deadline::AGENT_POLL_MS`].
    #[serde(default)]
    pub wait_ms: u64,
}

agent_verbs! {
    /// Begins to put a tree of files into a guest; a repeat for an operation that began already does nothing.
    WorkspaceImport = "workspace.import", deadline::AGENT, ImportRequest => Empty;
    /// Begins to take the changes of a workspace out of a guest.
    WorkspaceExport = "workspace.export", deadline::AGENT, ExportChangesRequest => Empty;
    /// Tells how a transfer goes. `failed_precondition` when the VM does not run any more.
    WorkspaceStatus = "workspace.status", deadline::AGENT, TransferRequest => TransferStatus;
    /// Ends a transfer; what it has not placed is removed. One that is not there is no error.
    WorkspaceAbort = "workspace.abort", deadline::AGENT, TransferRequest => Empty;
    /// Has a guest forget a workspace, and remove its files.
    WorkspaceForget = "workspace.forget", deadline::AGENT, ForgetRequest => Empty;
    /// Removes a kept disk's file.
    DiskRemove = "disk.remove", deadline::AGENT, DiskCommand => Empty;
    /// Tells that the agent lives, and for how long.
    HostAlive = "host.alive", deadline::ALIVE, Empty => Alive;
    /// Compares what is here with what the lab has rows of, checks the host, and removes what nobody owns if asked to.
    HostExamine = "host.examine", deadline::AGENT, ExamineRequest => Findings;
    /// Measures what VMs use of the host.
    HostUsage = "host.usage", deadline::USAGE, SampleRequest => Samples;
    /// Starts staging an image, or asks how it goes.
    ImageStage = "image.stage", deadline::AGENT, StageRequest => StageStatus;
    /// Renames a staged image to its final place.
    ImagePublish = "image.publish", deadline::PUBLISH, PublishRequest => StagedImage;
    /// Ends a staging and removes its directory.
    ImageDiscard = "image.discard", deadline::AGENT, DiscardRequest => Empty;
    /// Removes a published image's files.
    ImageRemove = "image.remove", deadline::AGENT, RemoveImageRequest => Empty;
    /// Makes a VM's directory, handles, disk, tap and config drive.
    VmProvision = "vm.provision", deadline::AGENT, ProvisionRequest => Provisioned;
    /// Starts a VM's VMM.
    VmBoot = "vm.boot", deadline::AGENT, VmCommand => VmObservation;
    /// Waits for a VM's guest to be ready, or to fail.
    VmAwaitReady = "vm.await_ready", deadline::AGENT, VmCommand => VmObservation;
    /// Changes what a VM is to be.
    VmAdjust = "vm.adjust", deadline::AGENT, AdjustRequest => Adjusted;
    /// Pauses a running VM's guest.
    VmPause = "vm.pause", deadline::AGENT, VmCommand => VmObservation;
    /// Resumes a paused one, and sets its clock.
    VmResume = "vm.resume", deadline::AGENT, VmCommand => VmObservation;
    /// Stops a VM's VMM.
    VmStop = "vm.stop", deadline::AGENT, StopRequest => VmObservation;
    /// Ends a VM's VMM and removes all the host has of it.
    VmRemove = "vm.remove", deadline::AGENT, VmCommand => Empty;
    /// Gathers what the host knows of a VM, for a postmortem.
    VmEvidence = "vm.evidence", deadline::QUICK, EvidenceRequest => Evidence;
    /// Lists what the host has.
    VmList = "vm.list", deadline::QUICK, Empty => Observations;
    /// Opens a byte stream into a guest, or onto its console log.
    GuestOpen = "guest.open", deadline::QUICK, OpenRequest => Opened;
    /// Lists, starts or signals the commands of a guest.
    GuestJobs = "guest.jobs", deadline::QUICK, job::AskRequest => job::Jobs;
}

//! Commands to one host-agent: `warren.agent.<host-id>.<area>.<verb>`.
//!
//! Each command may be repeated: the agent answers a repeat with the effect of the first. Long work
//! (staging, booting, powering off) goes on in the agent whether or not anybody waits; the command is a
//! long-poll of [`crate::deadline::AGENT_POLL_MS`] that answers with what is true now. A command with a
//! lower epoch than the agent has seen for its resource is refused with `aborted`.

mod bundle;
mod image;
mod inventory;
mod kernel;
mod transfer;
mod vm;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use bundle::{ExportBundleRequest, PushBundleRequest, PushStatus, PushedBundle};
pub use image::{
    DiscardRequest, PublishRequest, RemoveImageRequest, ResolveRequest, ResolvedImage, StageRequest, StageSource,
    StageStatus, StagedImage,
};
pub use inventory::{ImageHere, Inventory, InventoryRequest, ReclaimRequest, STRAYS_MAX, StagingHere};
pub use kernel::{
    KernelHere, KernelInventoryRequest, KernelsHere, PublishKernelRequest, RemoveKernelRequest, SendKernelRequest,
    StageKernelRequest, StageKernelSource, StageKernelStatus, StagedKernel, VmKernel,
};
pub use transfer::{ExportChangesRequest, ForgetRequest, ImportFrom, ImportRequest, TransferRequest};
pub use vm::{
    AdjustRequest, Adjusted, HostVmState, Observations, ProvisionRequest, Provisioned, StopRequest, VmCommand,
    VmObservation, VmSpec,
};

use crate::{
    deadline,
    direct::Opened,
    doctor::{ExamineRequest, Findings},
    host::Empty,
    id::{OperationId, SessionId, VmId},
    job,
    name::VmName,
    postmortem::{Evidence, EvidenceRequest},
    usage::{SampleRequest, Samples},
    verb::agent_verbs,
    workspace::SessionKind,
    worktree::TransferStatus,
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
    /// Finds out which manifest a source stands for now, without a download.
    ImageResolve = "image.resolve", deadline::AGENT, ResolveRequest => ResolvedImage;
    /// Starts staging an image, or asks how it goes.
    ImageStage = "image.stage", deadline::AGENT, StageRequest => StageStatus;
    /// Starts pushing an image as a bundle, or asks how it goes.
    ImagePush = "image.push", deadline::AGENT, PushBundleRequest => PushStatus;
    /// Starts sending an image as an archive, or asks how it goes.
    ImageExport = "image.export", deadline::AGENT, ExportBundleRequest => PushStatus;
    /// Renames a staged image to its final place.
    ImagePublish = "image.publish", deadline::PUBLISH, PublishRequest => StagedImage;
    /// Ends a staging and removes its directory.
    ImageDiscard = "image.discard", deadline::AGENT, DiscardRequest => Empty;
    /// Removes a published image's files.
    ImageRemove = "image.remove", deadline::AGENT, RemoveImageRequest => Empty;
    /// Starts staging a kernel, or asks how it goes.
    KernelStage = "kernel.stage", deadline::AGENT, StageKernelRequest => StageKernelStatus;
    /// Renames a staged kernel to its final place.
    KernelPublish = "kernel.publish", deadline::PUBLISH, PublishKernelRequest => StagedKernel;
    /// Ends a kernel's staging and removes its directory.
    KernelDiscard = "kernel.discard", deadline::AGENT, DiscardRequest => Empty;
    /// Removes a published kernel's files.
    KernelRemove = "kernel.remove", deadline::AGENT, RemoveKernelRequest => Empty;
    /// Lists what the host has of kernels, or tells whether it has one.
    KernelInventory = "kernel.inventory", deadline::AGENT, KernelInventoryRequest => KernelsHere;
    /// Opens a byte stream and sends a kernel on it.
    KernelSend = "kernel.send", deadline::QUICK, SendKernelRequest => Empty;
    /// Lists what the host has of images, published and staged.
    ImageInventory = "image.inventory", deadline::AGENT, InventoryRequest => Inventory;
    /// Removes a directory of an image that has no row, unless it was published anew since it was listed.
    ImageReclaim = "image.reclaim", deadline::AGENT, ReclaimRequest => Empty;
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

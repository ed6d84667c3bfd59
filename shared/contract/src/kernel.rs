//! **Kernels** as objects of their own: requests to `image-service` and what it says of them.
//!
//! A kernel is what it consists of: its digest is that of a document of its release, its architecture, its file and its modules. Names are
//! movable pointers to it, as those of images are.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    deadline,
    id::{HostId, ImageId, KernelId, SessionId},
    name::KernelName,
    operation::{Operation, default_wait_ms},
    verb::verbs,
};

/// The longest label of an upload, in bytes.
pub const LABEL_MAX: usize = 256;

/// Where a kernel's files come from. Packages (.deb, .rpm), archives of a package's files, and a bare vmlinux or bzImage are told by their
/// content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum KernelSource {
    /// A file, or a directory with the files of one kernel, on the host that imports it: an absolute path below a directory that host allows.
    Path(String),
    /// Files of the client, as one tar archive over a byte stream: as it is, or in the sparse form of an image's file, which can go on where it
    /// broke off ([`crate::upload`]).
    Upload {
        /// The stream; its opener, the client, listens already.
        session: SessionId,
        /// What is shown as the kernel's source: the files' names, at most [`LABEL_MAX`] bytes.
        label: String,
    },
}

impl std::fmt::Display for KernelSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => write!(f, "host:{path}"),
            Self::Upload { label, .. } => f.write_str(label),
        }
    }
}

/// Imports a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// Where from.
    pub source: KernelSource,
    /// The name it gets.
    pub name: KernelName,
    /// The host that holds it first; left out, the live host with most free disk space. VMs elsewhere have it brought to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// Take the name from the kernel that has it. VMs and images keep the kernel they have.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replace: bool,
    /// Hold the reply until the import has ended.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// Names one kernel: by name, id or digest, or how one of these two begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelRef {
    /// Its name, id or digest, or how one of these two begins.
    pub kernel: String,
}

/// Lists all kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {}

/// Takes a name away, and with the last name the kernel; by id or digest, the kernel with all its names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteRequest {
    /// Its name, id or digest, or how one of these two begins.
    pub kernel: String,
    /// Hold the reply until its files are gone too.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// Sets the kernel of VMs that name none and whose image names none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetDefaultRequest {
    /// Which; left out, each host's own again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
}

/// Asks which kernel a VM boots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChooseRequest {
    /// What the VM asks for, if it asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<KernelName>,
    /// Its image.
    pub image: ImageId,
}

/// The kernel that was asked for, or the image's, or the lab's default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Choice {
    /// Nothing when the one asked for is no kernel of the lab's (a host may have one of that name), or when none was and there is no default: then
    /// it is the host's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Kernel>,
}

/// Brings a kernel to a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlaceRequest {
    /// Which.
    pub kernel: KernelId,
    /// Where to.
    pub host: HostId,
    /// Hold the reply until it is there.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// A kernel as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Kernel {
    /// Its id.
    pub id: KernelId,
    /// The name that was asked for, or the first of its names; the first digits of its digest where it has none.
    pub name: KernelName,
    /// All its names, in order.
    #[serde(default)]
    pub names: Vec<KernelName>,
    /// `sha256:…` of what it consists of.
    pub digest: String,
    /// What `uname -r` says in a guest.
    pub release: String,
    /// OCI architecture, e.g. `amd64`.
    pub architecture: String,
    /// Size of its file and modules, in bytes.
    pub bytes: u64,
    /// Where it came from.
    pub source: String,
    /// Whether VMs boot it that name none and whose image names none.
    #[serde(default)]
    pub default: bool,
    /// The hosts that have it.
    pub hosts: Vec<HostId>,
    /// The hosts that are to have it, and were found to lack it or to have it damaged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<HostId>,
    /// How many VMs boot it.
    pub vms: u64,
    /// How many images name it.
    pub images: u64,
    /// When it was imported.
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String")]
    pub created_at: OffsetDateTime,
}

/// All kernels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct KernelList {
    /// By name; one that has several appears under each.
    pub kernels: Vec<Kernel>,
}

verbs! {
    /// Imports a kernel. Operation `kernel.import`; its result is the kernel.
    Import = "warren.kernel.import", true, deadline::WAITING, ImportRequest => Operation;
    /// Lists kernels.
    List = "warren.kernel.list", false, deadline::QUICK, ListRequest => KernelList;
    /// Shows one kernel.
    Get = "warren.kernel.get", false, deadline::QUICK, KernelRef => Kernel;
    /// Takes a name away; with the last one the kernel goes, unless VMs or images use it. Operation `kernel.delete`.
    Delete = "warren.kernel.delete", true, deadline::WAITING, DeleteRequest => Operation;
    /// Sets the kernel of VMs that name none and whose image names none.
    SetDefault = "warren.kernel.set_default", true, deadline::QUICK, SetDefaultRequest => Choice;
    /// Tells which kernel a VM boots.
    Choose = "warren.kernel.choose", false, deadline::QUICK, ChooseRequest => Choice;
    /// Brings a kernel to a host that lacks it. Operation `kernel.place`; its result is the kernel.
    Place = "warren.kernel.place", true, deadline::WAITING, PlaceRequest => Operation;
}

//! **Workspaces**: trees of files, usually git worktrees, that were put into VMs and whose changes are taken out again.
//!
//! A workspace is a directory of a VM that was *prepared*: its guest remembers, entry by entry, what was put there (the
//! **base**). What differs from the base are its **changes**, and *exporting* takes them out. Prepare and export of one VM are
//! operations on `workspace:<vm-id>` and so follow each other; they never wait for, or hold, the VM's own claim.
//!
//! Files travel straight between the client and the VM's host on a byte stream; workspace-service asks the host how it goes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    deadline,
    error::ApiError,
    file_name::FileName,
    id::{OperationId, SessionId, VmId, WorkspaceId},
    name::VmName,
    operation::{Operation, default_wait_ms},
    verb::verbs,
};

/// Where a workspace is when a request names no path.
pub const DEFAULT_PATH: &str = "/workspace";
/// The longest path of a workspace in its VM, in bytes.
pub const PATH_MAX: usize = 1024;
/// The most entries a tree may have.
pub const ENTRIES_MAX: u64 = 2_000_000;
/// The bytes of changes an export takes out when the request says nothing else.
pub const EXPORT_BYTES: u64 = 1 << 30;
/// The entries of changes an export takes out when the request says nothing else.
pub const EXPORT_ENTRIES: u64 = 100_000;

fn default_path() -> String {
    DEFAULT_PATH.to_owned()
}

/// How much of a repository's history goes along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum History {
    /// All commits that HEAD reaches.
    #[default]
    Full,
    /// The last so many commits (1 or more); the repository in the VM is shallow.
    Depth(u32),
    /// No repository at all: files only.
    None,
}

/// What a tree was taken from, as whoever took it tells; shown, and given back with an export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// The directory or URL, without credentials; at most 1024 bytes.
    pub origin: String,
    /// The commit HEAD was at, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// The branch HEAD was on; none when detached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// The name of the branch's upstream, such as `origin/main`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// The commit or tree that holds exactly what was put into the VM, in the repository it was taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// How much history went along; left out for what is no repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<History>,
}

/// Where the files of a prepare come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// From the caller, who listens as the opener of that session and speaks the tree protocol (crate `tree`).
    Upload {
        /// The byte stream.
        session: SessionId,
        /// What the tree was taken from.
        #[serde(default)]
        about: About,
    },
    /// A git repository that workspace-service reaches.
    Git {
        /// `https://`, `http://`, `ssh://`, `git://` or `file://` (where the service allows it).
        url: String,
        /// A branch, tag, or full commit id; left out, the remote's HEAD.
        #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        /// How much history goes along.
        #[serde(default)]
        history: History,
    },
    /// A directory on the VM's host, below one of those its operator allows (`WARREN_WORKSPACE_DIRS`).
    Host {
        /// Absolute.
        path: String,
    },
    /// A tar archive in a JetStream object store, `bucket/name`.
    Object(String),
}

/// How a tree gets to its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Placing {
    /// Built aside and swapped in by one rename: the whole tree is the old one or the new one.
    #[default]
    Swap,
    /// Each file replaced by a rename of its own, in the tree that is there, so that processes in it see the changes.
    InPlace,
}

/// Puts a tree of files into a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PrepareRequest {
    /// The VM's name or id.
    pub vm: String,
    /// The directory in the VM, absolute.
    #[serde(default = "default_path")]
    pub path: String,
    /// Whose the files become: a user name or `uid[:gid]`; left out, root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Where they come from.
    pub source: Source,
    /// How they get to their place.
    #[serde(default)]
    pub placing: Placing,
    /// Go on where changes in the VM were never exported, or a directory is there that is no workspace: they are lost.
    #[serde(default)]
    pub force: bool,
    /// Remove what git ignores too (build outputs, caches), which otherwise stays.
    #[serde(default)]
    pub clean: bool,
    /// Hold the reply until the operation has ended.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// Takes the changes out of a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// The VM's name or id.
    pub vm: String,
    /// The workspace's directory; left out, the VM's only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The byte stream that the caller listens on as its opener: it carries a tar archive in `stdout` frames, whose first entry,
    /// `changes.json`, is a [`ChangeList`]; `tree/…` are the changed files, `git/…` objects of commits made in the VM.
    pub session: SessionId,
    /// Send the objects of commits that were made in the VM too.
    #[serde(default)]
    pub commits: bool,
    /// What is taken out becomes the base: the next export holds what changes from now on.
    #[serde(default)]
    pub advance: bool,
    /// Fail when the changed files have more bytes.
    #[serde(default = "export_bytes")]
    pub max_bytes: u64,
    /// Fail when more entries changed.
    #[serde(default = "export_entries")]
    pub max_entries: u64,
    /// Hold the reply until the operation has ended.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

fn export_bytes() -> u64 {
    EXPORT_BYTES
}

fn export_entries() -> u64 {
    EXPORT_ENTRIES
}

/// Names a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceRef {
    /// The VM's name or id.
    pub vm: String,
    /// The workspace's directory; left out, the VM's only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Forgets a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveRequest {
    /// The VM's name or id.
    pub vm: String,
    /// The workspace's directory; left out, the VM's only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Keep the files; only what is known of them is forgotten.
    #[serde(default)]
    pub keep_files: bool,
    /// Go on where changes were never exported.
    #[serde(default)]
    pub force: bool,
    /// Hold the reply until the operation has ended.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// A workspace as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Workspace {
    /// Its id.
    pub id: WorkspaceId,
    /// Its VM.
    pub vm: VmId,
    /// The VM's name.
    pub vm_name: VmName,
    /// Its directory in the VM.
    pub path: String,
    /// Whose its files are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What it was taken from.
    pub about: About,
    /// The prepare it shows: none before the first has succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<OperationId>,
    /// How many entries were put there.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When it was last prepared.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub prepared_at: Option<OffsetDateTime>,
    /// When its changes were last exported.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub exported_at: Option<OffsetDateTime>,
    /// The operation that holds its VM's workspaces now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
}

/// Lists workspaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// Only this VM's (name or id).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// At most so many (1 to 1000; 100).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Those after this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<WorkspaceId>,
}

/// A page of workspaces, by id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Workspaces {
    /// The page.
    pub workspaces: Vec<Workspace>,
    /// There are more after the last.
    pub more: bool,
}

/// What a host and its guest are told of a prepare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportOrder {
    /// The prepare; becomes the base's generation.
    pub operation: OperationId,
    /// The epoch of its claim on the VM's workspaces; a lower one than was seen is refused with `aborted`.
    pub epoch: i64,
    /// The directory.
    pub path: String,
    /// Whose the files become.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// How they get to their place.
    #[serde(default)]
    pub placing: Placing,
    /// Go on over changes that were never exported.
    #[serde(default)]
    pub force: bool,
    /// Remove what git ignores too.
    #[serde(default)]
    pub clean: bool,
    /// What the tree was taken from.
    #[serde(default)]
    pub about: About,
}

/// What a host and its guest are told of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportOrder {
    /// The export.
    pub operation: OperationId,
    /// The epoch of its claim on the VM's workspaces.
    pub epoch: i64,
    /// The directory.
    pub path: String,
    /// Send the objects of commits made in the VM.
    #[serde(default)]
    pub commits: bool,
    /// What is taken out becomes the base.
    #[serde(default)]
    pub advance: bool,
    /// Fail when the changed files have more bytes.
    pub max_bytes: u64,
    /// Fail when more entries changed.
    pub max_entries: u64,
}

/// What a host and its guest are told of a removal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RemoveOrder {
    /// The removal.
    pub operation: OperationId,
    /// The epoch of its claim on the VM's workspaces.
    pub epoch: i64,
    /// The directory.
    pub path: String,
    /// Keep the files.
    #[serde(default)]
    pub keep_files: bool,
    /// Go on where changes were never exported.
    #[serde(default)]
    pub force: bool,
}

/// How a transfer into or out of a guest goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum TransferStatus {
    /// The guest knows nothing of it: it never began, or the guest was started anew since.
    Unknown,
    /// Under way.
    Running {
        /// `comparing`, `receiving`, `placing`, `scanning`, `sending`.
        phase: String,
        /// Bytes of content moved so far.
        done: u64,
        /// Bytes to move; 0 while not known.
        total: u64,
    },
    /// Done.
    Done {
        /// What it did.
        summary: TransferSummary,
    },
    /// Failed; the tree is what it was.
    Failed {
        /// Why.
        error: ApiError,
    },
}

/// What a transfer did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TransferSummary {
    /// Entries of the whole tree (prepare) or entries that changed (export).
    pub entries: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Files whose content was moved.
    pub moved_files: u64,
    /// Bytes of content moved.
    pub moved_bytes: u64,
    /// Nothing had to change.
    #[serde(default)]
    pub unchanged: bool,
    /// What was left out or done otherwise, at most 64 lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The first entry of an export's archive: all that changed since the base.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeList {
    /// The prepare that made the base, or the export that advanced it.
    pub generation: Option<OperationId>,
    /// What the base was taken from.
    pub about: About,
    /// The commit that `.git/HEAD` leads to in the VM, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<String>,
    /// The branch it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    /// The changes, by path. `.git` is never among them.
    pub changes: Vec<Change>,
    /// What was left out, at most 64 lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One changed path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Below the workspace's directory.
    pub path: FileName,
    /// What was there in the base; none: it was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Node>,
    /// What is there now; none: it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Node>,
}

/// What stands at a path, without its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Node {
    /// A directory.
    Directory {
        /// Permission bits, at most `0o777`.
        mode: u32,
    },
    /// A regular file.
    File {
        /// Permission bits, at most `0o777`.
        mode: u32,
        /// Its length in bytes.
        size: u64,
        /// Its content's git blob id (SHA-1 over `blob <size>\0` and the bytes), in hexadecimal.
        digest: String,
    },
    /// A symbolic link.
    Symlink {
        /// Where it leads, as it stands.
        target: FileName,
    },
}

verbs! {
    /// Puts a tree of files into a VM as a workspace.
    Prepare = "warren.workspace.prepare", true, deadline::WAITING, PrepareRequest => Operation;
    /// Takes a workspace's changes out.
    Export = "warren.workspace.export", true, deadline::WAITING, ExportRequest => Operation;
    /// Forgets a workspace, and removes its files.
    Remove = "warren.workspace.remove", true, deadline::WAITING, RemoveRequest => Operation;
    /// Shows one workspace.
    Get = "warren.workspace.get", false, deadline::QUICK, WorkspaceRef => Workspace;
    /// Lists workspaces.
    List = "warren.workspace.list", false, deadline::QUICK, ListRequest => Workspaces;
}

//! **Workspaces**: trees of files, usually git worktrees, that were put into VMs and whose changes are taken out again.
//!
//! A workspace is a directory of a VM that was *prepared*: its guest remembers, entry by entry, what was put there (the
//! **base**). What differs from the base are its **changes**, and *exporting* takes them out. Prepare and export of one VM are
//! operations on `workspace:<vm-id>` and so follow each other; they never wait for, or hold, the VM's own claim.
//!
//! Files travel straight between the client and the VM's host on a byte stream; workspace-service asks the host how it goes.

mod change;
mod order;
mod request;
mod source;
mod transfer;
mod workspace;

pub use change::{Change, ChangeList, Looked, Node};
pub use order::{ExportOrder, ImportOrder, RemoveOrder};
pub use request::{ExportRequest, Placing, PrepareRequest, RemoveRequest, WorkspaceRef};
pub use source::{About, History, Source};
pub use transfer::{TransferStatus, TransferSummary};
pub use workspace::{ListRequest, Workspace, Workspaces};

use crate::{deadline, operation::Operation, verb::verbs};

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

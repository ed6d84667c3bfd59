//! The ends of the protocol, whose bodies land next.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use contract::worktree::{ChangeList, ExportOrder, ImportOrder, RemoveOrder, TransferSummary};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{GuestError, Progress, ReadError, SendError, Transfer, Tree};

/// What was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// What the guest says it did.
    pub summary: TransferSummary,
    /// Bytes on the wire towards the guest, all of them.
    pub wire_bytes: u64,
}

/// Where a guest keeps what it knows of its workspaces (`/var/lib/warren/workspaces`).
#[derive(Clone, Debug)]
pub struct StateDir(pub PathBuf);

/// What an export may have at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Changes.
    pub entries: u64,
    /// Bytes of all files, objects of commits included.
    pub bytes: u64,
}

/// The client's end of a prepare. `progress` is told of each piece. Blocking.
///
/// # Errors
/// See the variants; the guest's tree is what it was.
#[expect(clippy::todo, reason = "lands next")]
pub fn send(
    _tree: &Tree,
    _from_guest: impl Read,
    _to_guest: impl Write,
    _progress: &dyn Fn(Progress),
) -> Result<Sent, SendError> {
    todo!()
}

/// [`send`] over a byte stream in frames, in a thread of its own.
///
/// # Errors
/// See the variants.
#[expect(clippy::todo, reason = "lands next")]
pub async fn upload(
    _stream: impl AsyncRead + AsyncWrite + Send + 'static,
    _tree: Arc<Tree>,
    _progress: impl Fn(Progress) + Send + 'static,
) -> Result<Sent, SendError> {
    todo!()
}

/// The guest's end of a prepare; files become `owner`'s (user and group id), or the process's own. Blocking.
///
/// # Errors
/// See the variants; the old tree is what it was.
#[expect(clippy::todo, reason = "lands next")]
pub fn receive(
    _order: &ImportOrder,
    _state: &StateDir,
    _owner: Option<(u32, u32)>,
    _from_client: impl Read,
    _to_client: impl Write,
    _watch: &Transfer,
) -> Result<TransferSummary, GuestError> {
    todo!()
}

/// The guest's end of an export: writes the archive, then reads `from_client` to its end, by which the client says that it has taken
/// everything: only then the export counts (`advance`, or permission to prepare over those changes). Blocking.
///
/// # Errors
/// See the variants.
#[expect(clippy::todo, reason = "lands next")]
pub fn export(
    _order: &ExportOrder,
    _state: &StateDir,
    _from_client: impl Read,
    _to_client: impl Write,
    _watch: &Transfer,
) -> Result<TransferSummary, GuestError> {
    todo!()
}

/// Forgets a workspace and removes its files. Blocking.
///
/// # Errors
/// Changes were never exported, or files cannot be removed. A path that is no workspace is [`GuestError::NoWorkspace`].
#[expect(clippy::todo, reason = "lands next")]
pub fn forget(_order: &RemoveOrder, _state: &StateDir) -> Result<(), GuestError> {
    todo!()
}

/// The client's end of an export: changed files come to be below `quarantine/tree`, objects of commits below `quarantine/git/objects`, and
/// nothing anywhere else. `quarantine` has to be an empty directory of nobody else's. Files have mode 0600 whatever the list says of them; links are in the list
/// only. Each file has the size and digest that the list says. Blocking.
///
/// # Errors
/// See the variants; what is in the quarantine is of no use then.
#[expect(clippy::todo, reason = "lands next")]
pub fn read_export(_from_guest: impl Read, _quarantine: &Path, _limits: Limits) -> Result<ChangeList, ReadError> {
    todo!()
}

/// An export that has been read, and waits to be accepted.
#[derive(Debug)]
pub struct Download {
    /// The changes.
    pub changes: ChangeList,
}

impl Download {
    /// Tells the guest that everything was taken, so that the export counts. Dropped instead, it does not.
    ///
    /// # Errors
    /// The guest could not note it, or has gone.
    #[expect(clippy::todo, reason = "lands next")]
    pub async fn accept(self) -> Result<(), ReadError> {
        todo!()
    }
}

/// [`read_export`] over a byte stream in frames, in a thread of its own.
///
/// # Errors
/// See the variants.
#[expect(clippy::todo, reason = "lands next")]
pub async fn download(
    _stream: impl AsyncRead + AsyncWrite + Send + 'static,
    _quarantine: PathBuf,
    _limits: Limits,
) -> Result<Download, ReadError> {
    todo!()
}

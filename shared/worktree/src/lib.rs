//! **Worktrees**: a directory, usually a git worktree, as a [`tree::Tree`] that goes into a VM, and what changed there on its way back.
//!
//! [`capture`](capture()) takes what git would show: HEAD, branch, index, and the files as they lie; the guest's `.git` is built of plain files, so no git is
//! needed there. A [`Snapshot`] keeps what was sent as a commit, beside which [`changes`] become a patch, commits, or writes in the worktree
//! ([`apply`](apply())). Git is run as a program ([`Git`]), and never in a directory that a guest wrote.

mod address;
mod apply;
mod blobs;
mod builder;
mod cache;
mod capture;
mod changes;
mod commit;
mod config;
mod error;
mod fast_import;
mod fetch;
mod git;
mod gitdir;
mod index;
mod merge;
mod objects;
mod packs;
mod place;
mod remote;
mod repo;
mod snapshot;
mod stat_cache;
mod stop;
mod submodules;

pub use address::Hosts;
pub use apply::{Applied, apply};
pub use capture::{Captured, Options, capture, capture_plain};
pub use changes::{Export, Look, Taken, patch};
pub use error::{Conflict, WorktreeError};
pub use git::Git;
pub use objects::{Imported, import_commits};
pub use remote::{Checkout, Remote};
pub use repo::Repo;
pub use snapshot::{Base, References, Snapshot, private_repository};
pub use stop::{Stop, StopOnDrop};

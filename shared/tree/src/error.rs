//! Why a transfer failed, at either end.

use std::io;

use contract::{ApiError, ErrorCode, FileName};

use crate::TreeError;

/// Why a tree could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// A file of it cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// Which.
        path: FileName,
        /// Why.
        source: io::Error,
    },
    /// A file of it is not what the tree says any more: take the tree anew.
    #[error("{path} changed while it was read")]
    Changed {
        /// Which.
        path: FileName,
    },
    /// The stream broke.
    #[error("the transfer was cut off")]
    Stream(#[source] io::Error),
    /// The guest ended it, and said why.
    #[error("the VM refused it: {0}")]
    Refused(String),
    /// The guest answered what nobody asked.
    #[error("the VM sent what is no answer: {0}")]
    Protocol(&'static str),
}

/// Why a guest could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// It was asked to end.
    #[error("the transfer was aborted")]
    Aborted,
    /// A later claim on the VM's workspaces was seen.
    #[error("epoch {epoch} is older than {seen}, which was seen")]
    Stale {
        /// What came.
        epoch: i64,
        /// What was seen.
        seen: i64,
    },
    /// The path is no place of a workspace.
    #[error("{path} cannot be a workspace: {why}")]
    Path {
        /// Which.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// A directory is there that nobody prepared.
    #[error("{0} is there and is no workspace")]
    Occupied(String),
    /// Nobody prepared it.
    #[error("{0} is no workspace")]
    NoWorkspace(String),
    /// Changes would be lost.
    #[error("{path} has changes that were never exported: {what}")]
    Unexported {
        /// The workspace.
        path: String,
        /// Some of them.
        what: String,
    },
    /// Programs in the VM changed the tree that was to be replaced, which was put back.
    #[error("{path} changed while it was being replaced: {what}")]
    Raced {
        /// The workspace.
        path: String,
        /// Some of what changed.
        what: String,
    },
    /// What is known of a prepare that was cut off in the middle cannot be read.
    #[error("what the VM remembers of {0} is damaged, in the middle of a prepare")]
    Damaged(String),
    /// The VM's disk has not enough room.
    #[error("the VM's disk has {free} bytes free, {wanted} are needed")]
    NoRoom {
        /// What it has.
        free: u64,
        /// What it takes.
        wanted: u64,
    },
    /// The VM's disk has not enough inodes.
    #[error("the VM's disk has inodes for {free} more files, {wanted} are needed")]
    NoInodes {
        /// What it has.
        free: u64,
        /// What it takes.
        wanted: u64,
    },
    /// More changed than may be taken out.
    #[error("{0}")]
    TooMuch(String),
    /// A file changed between being listed and being sent.
    #[error("{0} changed while it was exported")]
    Changed(FileName),
    /// The client sent no tree.
    #[error("the tree cannot be taken")]
    Tree(#[from] TreeError),
    /// The client does not keep to the protocol.
    #[error("the client sent what cannot be read: {0}")]
    Protocol(&'static str),
    /// The client ended it, and said why.
    #[error("the client ended the transfer: {0}")]
    Client(String),
    /// The client has gone, or its bytes are damaged.
    #[error("the client's stream broke off")]
    Stream(#[source] io::Error),
    /// The guest's files cannot be read or written.
    #[error("{what} in the VM failed")]
    Files {
        /// What was done.
        what: String,
        /// Why not.
        source: io::Error,
    },
}

impl GuestError {
    /// As the one who asked reads it.
    pub fn to_api(&self) -> ApiError {
        let code = match self {
            Self::Aborted => ErrorCode::Cancelled,
            Self::Path { .. } | Self::Tree(_) | Self::Protocol(_) => ErrorCode::InvalidArgument,
            Self::NoWorkspace(_) => ErrorCode::NotFound,
            Self::Occupied(_) | Self::Unexported { .. } | Self::Damaged(_) => ErrorCode::FailedPrecondition,
            Self::NoRoom { .. } | Self::NoInodes { .. } | Self::TooMuch(_) => ErrorCode::ResourceExhausted,
            Self::Changed(_) | Self::Client(_) | Self::Stale { .. } | Self::Raced { .. } => ErrorCode::Aborted,
            Self::Stream(_) => ErrorCode::Unavailable,
            Self::Files { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::ResourceExhausted,
                io::ErrorKind::ReadOnlyFilesystem => ErrorCode::FailedPrecondition,
                _ => ErrorCode::Internal,
            },
        };
        let error = ApiError::new(code, chain(self));
        match self.hint() {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }

    fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Occupied(_) => "name another path, or give force: what is there is lost then",
            Self::NoWorkspace(_) => "prepare it first",
            Self::Unexported { .. } => "export them first, or give force: they are lost then",
            Self::Raced { .. } => "export what changed and prepare again, or give force: it is lost then",
            Self::Damaged(_) => "save what you need of its files and prepare it with force, or remove it with force",
            Self::NoRoom { .. } | Self::NoInodes { .. } => {
                "make the VM's disk larger (vm set --disk), or send less of it"
            }
            Self::TooMuch(_) => "raise the export's limits, or have git ignore what is not wanted",
            Self::Changed(_) => "export again when the programs in the VM have come to rest",
            Self::Stream(_) => "does the client still run? Do it again; the tree is what it was",
            _ => return None,
        })
    }

    pub(crate) fn files(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Files { what, source }
    }
}

/// What an error of a stream's bytes is: theirs, or the stream's own.
pub(crate) fn broken(error: io::Error) -> GuestError {
    match error.kind() {
        // zstd calls what is damaged just an error.
        io::ErrorKind::InvalidData | io::ErrorKind::Other => {
            GuestError::Protocol("a message is damaged or out of its turn")
        }
        _ => GuestError::Stream(error),
    }
}

/// Why an export could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The stream broke, or the archive is damaged.
    #[error("the export was cut off")]
    Stream(#[source] io::Error),
    /// The guest ended it, and said why.
    #[error("the VM refused it: {0}")]
    Refused(String),
    /// What came is no export. A guest may send anything; nothing of it was used.
    #[error("the VM sent what is no export: {0}")]
    Hostile(String),
    /// More came than is taken.
    #[error("the export has more than {0}")]
    TooMuch(String),
    /// It cannot be written here.
    #[error("{path} cannot be written")]
    Write {
        /// Where.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

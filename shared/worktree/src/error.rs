//! What goes wrong with a worktree, said to whoever's it is.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use contract::{ApiError, ErrorCode};

/// How many paths an error names.
const NAMED: usize = 10;

/// Why a worktree was not captured, or changes were not brought back.
#[derive(Debug, thiserror::Error)]
pub enum WorktreeError {
    /// The program is not there.
    #[error("git cannot be run: {0}")]
    NoGit(io::Error),
    /// It did not do what it was asked for.
    #[error("git {what} failed: {said}")]
    Git {
        /// Its subcommand.
        what: String,
        /// Its last words.
        said: String,
    },
    /// It took too long and was ended.
    #[error("git {what} did not end within {seconds} s")]
    GitTimeout {
        /// Its subcommand.
        what: String,
        /// How long it had.
        seconds: u64,
    },
    /// Nobody waits for it any more.
    #[error("git was ended, as nobody waits for it any more")]
    Stopped,
    /// Something cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something cannot be written.
    #[error("{} cannot be written: {source}", path.display())]
    Write {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file became another while it was read.
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
    /// The index holds conflicts.
    #[error("{} has unmerged paths: {}", at.display(), Paths(paths))]
    Unmerged {
        /// Of which worktree.
        at: PathBuf,
        /// Which.
        paths: Vec<PathBuf>,
    },
    /// A merge, rebase or the like was begun and not finished.
    #[error("{what} is in progress in {}", at.display())]
    InProgress {
        /// What.
        what: &'static str,
        /// How git ends it.
        command: &'static str,
        /// Of which worktree.
        at: PathBuf,
    },
    /// It is of a kind that is not supported.
    #[error("{0}")]
    Unsupported(String),
    /// Whoever runs this does not let it be.
    #[error("{0}")]
    Forbidden(String),
    /// What is wrong with one of its submodules.
    #[error("submodule {}: {source}", path.display())]
    Submodule {
        /// Its place.
        path: PathBuf,
        /// What is.
        source: Box<WorktreeError>,
    },
    /// It is larger than what is taken.
    #[error("{0}")]
    TooMuch(String),
    /// The user asked for what is not there.
    #[error("{0}")]
    Absent(String),
    /// What was in the VM does not fit what is here.
    #[error("{} of the changes do not fit what is here: {}", .0.len(), Conflicts(.0))]
    Conflicts(Vec<Conflict>),
    /// What came out of the VM is not what a guest-agent would send.
    #[error("what came out of the VM was refused: {0}")]
    Hostile(String),
}

/// One path that cannot be changed as it was in the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Below the worktree.
    pub path: PathBuf,
    /// Why.
    pub why: &'static str,
}

impl WorktreeError {
    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Read { path: path.to_owned(), source }
    }

    pub(crate) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Write { path: path.to_owned(), source }
    }
}

struct Paths<'a>(&'a [PathBuf]);

impl fmt::Display for Paths<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<_> = self.0.iter().take(NAMED).map(|path| path.display().to_string()).collect();
        f.write_str(&named.join(", "))?;
        rest(f, self.0.len())
    }
}

struct Conflicts<'a>(&'a [Conflict]);

impl fmt::Display for Conflicts<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<_> = self.0.iter().take(NAMED).map(|it| format!("{} ({})", it.path.display(), it.why)).collect();
        f.write_str(&named.join(", "))?;
        rest(f, self.0.len())
    }
}

fn rest(f: &mut fmt::Formatter<'_>, count: usize) -> fmt::Result {
    if count > NAMED { write!(f, " and {} more", count - NAMED) } else { Ok(()) }
}

impl From<WorktreeError> for ApiError {
    fn from(error: WorktreeError) -> Self {
        use WorktreeError as E;
        if let E::Submodule { path, source } = error {
            let inner = Self::from(*source);
            return Self { message: format!("submodule {}: {}", path.display(), inner.message), ..inner };
        }
        let code = match &error {
            E::NoGit(_) | E::Unmerged { .. } | E::InProgress { .. } | E::Unsupported(_) | E::TooMuch(_) => {
                ErrorCode::FailedPrecondition
            }
            E::Git { .. } | E::Read { .. } | E::Write { .. } => ErrorCode::FailedPrecondition,
            E::GitTimeout { .. } => ErrorCode::DeadlineExceeded,
            E::Stopped => ErrorCode::Cancelled,
            E::Forbidden(_) => ErrorCode::PermissionDenied,
            E::Changed(_) | E::Conflicts(_) => ErrorCode::Aborted,
            E::Absent(_) => ErrorCode::NotFound,
            E::Hostile(_) | E::Submodule { .. } => ErrorCode::FailedPrecondition,
        };
        let hint = match &error {
            E::NoGit(_) => Some("on Debian it is in the package git".to_owned()),
            E::Unmerged { .. } => Some("resolve the conflicts and `git add` the files, or leave them out with --dirty=no".to_owned()),
            E::InProgress { command, .. } => {
                Some(format!("finish or abort it ({command}), or take only HEAD's files with --dirty=no"))
            }
            E::Git { said, .. } if said.contains("dubious ownership") => {
                Some("the repository is another user's; git says how to trust it".to_owned())
            }
            E::Changed(_) => Some("something writes there; try again when it is done".to_owned()),
            E::Conflicts(_) => Some(
                "nothing was written; take a patch with --format patch -o FILE, or commit or undo what is changed here and export again"
                    .to_owned(),
            ),
            _ => None,
        };
        let api = Self::new(code, error.to_string());
        match hint {
            Some(hint) => api.hint(hint),
            None => api,
        }
    }
}

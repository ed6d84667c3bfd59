//! **Exporting**: changes come out of a VM into a quarantine, are told from their snapshot, and count as exported once they are where they
//! belong.

use std::path::{Path, PathBuf};

use bus::ByteStream;
use contract::{
    ApiError, OperationId, SessionId, deadline,
    operation::{self, Operation, OperationRef},
    worktree::{
        self as contract_worktree, ChangeList, EXPORT_BYTES, EXPORT_ENTRIES, ExportRequest, Workspace, WorkspaceRef,
    },
};
use tempfile::TempDir;
use tree::{Download, Limits, ReadError};
use worktree::{Base, Export, Git, References, Repo, Taken};

use super::record::{self, Record};
use crate::{client::Client, failure::Failure, wait};

/// What to take out.
#[derive(Clone, Debug)]
pub struct Taking {
    /// Name or id of the VM.
    pub vm: String,
    /// The workspace's directory; the VM's only one where none is named.
    pub path: Option<String>,
    /// Objects of commits too.
    pub commits: bool,
    /// What is taken out becomes the base.
    pub advance: bool,
    /// The most bytes.
    pub max_bytes: u64,
    /// The most changes.
    pub max_entries: u64,
}

impl Taking {
    /// All changes of a workspace, within the usual limits.
    pub fn of(vm: &str, path: Option<&str>) -> Self {
        Self {
            vm: vm.to_owned(),
            path: path.map(str::to_owned),
            commits: false,
            advance: false,
            max_bytes: EXPORT_BYTES,
            max_entries: EXPORT_ENTRIES,
        }
    }
}

/// Changes that came out, and wait to be settled.
#[derive(Debug)]
pub struct Fetched {
    /// The workspace.
    pub workspace: Workspace,
    /// The operation, still under way.
    pub operation: OperationId,
    download: Download<ByteStream>,
    following: Operation,
    quarantine: TempDir,
}

/// Fetches the changes of a workspace.
///
/// # Errors
/// There is no such workspace, the VM does not run, or what came was refused.
pub async fn fetch(client: &Client, taking: &Taking) -> Result<Fetched, Failure> {
    let place = WorkspaceRef { vm: taking.vm.clone(), path: taking.path.clone() };
    let workspace = client.ask::<contract_worktree::Get>(&place).await?;
    let quarantine = quarantine()?;
    let session = SessionId::new();
    let stream = ByteStream::open_within(client.bus(), session, deadline::TRANSFER).await?;
    let request = ExportRequest {
        vm: workspace.vm.to_string(),
        path: Some(workspace.path.clone()),
        session,
        commits: taking.commits,
        advance: taking.advance,
        max_bytes: taking.max_bytes,
        max_entries: taking.max_entries,
        wait: false,
        timeout_ms: deadline::WAIT_DEFAULT_MS,
    };
    let operation = client.change::<contract_worktree::Export>(&request, deadline::QUICK).await?;
    let id = operation.id;
    let limits = Limits { entries: taking.max_entries, bytes: taking.max_bytes };
    let following = operation.clone();
    let download = tree::download(stream, quarantine.path().to_owned(), limits);
    let follow = wait::follow(client, operation, None, |_| Ok(()));
    tokio::pin!(download, follow);
    let download = tokio::select! {
        download = &mut download => match download {
            Ok(download) => download,
            // The operation's error says more than the stream's end, unless what came was refused here.
            Err(error @ (ReadError::Stream(_) | ReadError::Refused(_))) => {
                wait::succeeded(follow.await?)?;
                return Err(of_read(&error).into());
            }
            Err(error) => {
                cancel(client, id).await?;
                return Err(of_read(&error).into());
            }
        },
        ended = &mut follow => {
            wait::succeeded(ended?)?;
            download.await.map_err(|error| of_read(&error))?
        }
        interrupted = tokio::signal::ctrl_c() => {
            tracing::debug!(?interrupted, "Ctrl-C");
            cancel(client, id).await?;
            return Err(ApiError::cancelled("the export was called off").into());
        }
    };
    Ok(Fetched { workspace, operation: id, download, following, quarantine })
}

impl Fetched {
    /// The changes.
    pub fn changes(&self) -> &ChangeList {
        &self.download.changes
    }

    /// The changes with where their files are.
    pub fn export(&self) -> Export<'_> {
        Export { changes: &self.download.changes, quarantine: self.quarantine.path() }
    }

    /// Tells the VM that everything is where it belongs, so that the export counts.
    ///
    /// # Errors
    /// It could not note that; the export does not count then.
    pub async fn accept(self, client: &Client) -> Result<Operation, Failure> {
        self.download.accept().await.map_err(|error| of_read(&error))?;
        let ended = wait::follow(client, self.following, None, |_| Ok(())).await?;
        Ok(wait::succeeded(ended)?)
    }

    /// Leaves it: nothing was exported.
    ///
    /// # Errors
    /// The operation cannot be cancelled.
    pub async fn leave(self, client: &Client) -> Result<(), Failure> {
        let id = self.operation;
        drop(self.download);
        Ok(cancel(client, id).await?)
    }
}

/// Calls an operation off; one that has ended by itself is fine.
pub(super) async fn cancel(client: &Client, id: OperationId) -> Result<(), ApiError> {
    match client.change::<operation::Cancel>(&OperationRef { id }, deadline::QUICK).await {
        // It has ended by itself.
        Err(error) if error.code == contract::ErrorCode::FailedPrecondition => Ok(()),
        other => other.map(drop),
    }
}

fn quarantine() -> Result<TempDir, ApiError> {
    let dir = record::cache_dir()?.join("scratch");
    let make = || {
        std::fs::create_dir_all(&dir)?;
        tempfile::Builder::new().prefix("export-").tempdir_in(&dir)
    };
    make().map_err(|error| ApiError::failed_precondition(format!("{} cannot be written: {error}", dir.display())))
}

fn of_read(error: &ReadError) -> ApiError {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    match error {
        ReadError::Stream(_) => ApiError::unavailable(text).hint("does the VM still run? Export again"),
        ReadError::Refused(_) | ReadError::Hostile(_) | ReadError::Write { .. } => ApiError::failed_precondition(text),
        ReadError::TooMuch(_) => ApiError::new(contract::ErrorCode::ResourceExhausted, text)
            .hint("raise --max-bytes or --max-entries, or have git ignore what is not wanted"),
    }
}

/// The snapshot changes are told from, and where they belong.
#[derive(Clone, Debug)]
pub struct Origin {
    /// What was sent.
    pub base: Base,
    /// Git where that is.
    pub git: Git,
    /// How what came out is kept.
    pub references: References,
    /// The directory they belong into; none where it was an archive.
    pub root: Option<PathBuf>,
    /// What this machine remembers; none where it did not prepare the workspace.
    pub record: Option<Record>,
}

impl Origin {
    /// Finds it: this machine's record, or else a repository (`into`, or where the user is) that has the commit the VM names.
    ///
    /// # Errors
    /// Nothing here knows what was sent.
    pub fn find(workspace: &Workspace, changes: &ChangeList, into: Option<&Path>) -> Result<Self, ApiError> {
        let references = References::new(&workspace.vm_name, &workspace.path);
        let record = Record::load(workspace.vm, &workspace.path)?;
        if let Some(record) = record
            && let Some(base) = record.base(changes.generation).cloned()
            && record.repository.is_dir()
        {
            let root = into.map(Path::to_owned).or_else(|| record.source.clone().filter(|dir| dir.is_dir()));
            let references = record.references();
            return Ok(Self { base, git: record.git(), references, root, record: Some(record) });
        }
        let here = into.map_or_else(|| PathBuf::from("."), Path::to_owned);
        let repo = if here.is_dir() { Repo::find(&here)? } else { None };
        // That the commit is the right one shows where the changes are told from it: what was there before has to fit.
        let named = [&workspace.about.base, &workspace.about.head];
        if let Some(repo) = repo {
            for commit in named.into_iter().flatten() {
                if repo.commit(commit)?.as_ref() == Some(commit) {
                    let base = Base {
                        head: workspace.about.head.clone(),
                        dirty: commit.clone(),
                        commit: commit.clone(),
                        staged: None,
                    };
                    let root = (!repo.bare).then(|| repo.top.clone());
                    return Ok(Self { base, git: repo.git.clone(), references, root, record: None });
                }
            }
        }
        let message = format!("nothing here knows what was put into {}:{}", workspace.vm_name, workspace.path);
        let from = &workspace.about.origin;
        Err(ApiError::failed_precondition(message).hint(format!(
            "it was prepared from {from}: go on where that was done, name a clone of it with --into, or take the files with --format tar"
        )))
    }

    /// Tells the changes from the snapshot.
    ///
    /// # Errors
    /// They do not fit it.
    pub fn take(&self, export: &Export<'_>) -> Result<Taken, ApiError> {
        Ok(export.take(&self.git, &self.references, &self.base)?)
    }
}

//! **Preparing**: a worktree is captured and kept as a snapshot, then sent while the operation is watched.

use std::{path::PathBuf, sync::Arc};

use archive::{Owner, Place};
use bus::ByteStream;
use contract::{
    ApiError, ErrorCode, FileName, SessionId, deadline,
    operation::{self, Operation, OperationRef},
    vm::{self, Vm, VmRef},
    worktree::{self as contract_worktree, Placing, PrepareRequest, Source},
};
use tree::{SendError, Sent};
use worktree::{Captured, Options, Snapshot, WorktreeError, capture, capture_plain, private_repository};

use super::{
    bar::Bar,
    record::{self, Record},
};
use crate::{client::Client, failure::Failure, wait};

/// What to put where.
#[derive(Clone, Debug)]
pub struct Prepare {
    /// Name or id of the VM.
    pub vm: String,
    /// The directory in it.
    pub path: String,
    /// Whose the files become; root's where nobody is named.
    pub owner: Option<String>,
    /// How they get to their place.
    pub placing: Placing,
    /// Go on over what was never exported, or is no workspace.
    pub force: bool,
    /// Remove what git ignores too.
    pub clean: bool,
}

/// What was put there.
#[derive(Debug)]
pub struct Prepared {
    /// The operation, which has succeeded.
    pub operation: Operation,
    /// What was moved.
    pub sent: Sent,
    /// The tree that was sent.
    pub captured: Captured,
    /// What was left out here.
    pub warnings: Vec<String>,
}

/// How often a tree is captured anew whose files change meanwhile.
const CAPTURES: u32 = 2;

/// How a worktree is captured.
pub type Taking = Arc<dyn Fn() -> Result<Captured, WorktreeError> + Send + Sync>;

/// Captures a directory here each time it is asked.
///
/// # Errors
/// The user has no home for the cache.
pub fn taking(dir: PathBuf, options: Options) -> Taking {
    Arc::new(move || capture(&dir, &options))
}

/// Puts a directory's files into a VM, and waits until they are there. Where they change meanwhile it begins anew, once.
///
/// # Errors
/// The worktree cannot be taken, the VM refuses it, or the transfer was cut off; the VM's tree is what it was then.
pub async fn prepare(client: &Client, prepare: &Prepare, take: &Taking, bar: &Bar) -> Result<Prepared, Failure> {
    let vm = client.ask::<vm::Get>(&VmRef { vm: prepare.vm.clone() }).await?;
    for last in (1..=CAPTURES).map(|attempt| attempt == CAPTURES) {
        bar.phase("reading the worktree");
        match attempt(client, prepare, &vm, take, bar).await {
            Err(Attempt::Changed(..)) if !last => {}
            Err(Attempt::Changed(error, _) | Attempt::Failed(error)) => return Err(error.into()),
            Ok(prepared) => return Ok(prepared),
        }
    }
    Err(ApiError::internal("a prepare ended without an outcome").into())
}

enum Attempt {
    /// A file changed while it was read: worth another one. Which, where that is known.
    Changed(ApiError, Option<Box<FileName>>),
    Failed(ApiError),
}

impl From<ApiError> for Attempt {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

impl From<WorktreeError> for Attempt {
    fn from(error: WorktreeError) -> Self {
        match error {
            WorktreeError::Changed(_) => Self::Changed(error.into(), None),
            other => Self::Failed(other.into()),
        }
    }
}

/// A snapshot that is kept as pending, with where it is.
struct Kept {
    captured: Captured,
    record: Record,
    base: worktree::Base,
}

async fn attempt(client: &Client, prepare: &Prepare, vm: &Vm, take: &Taking, bar: &Bar) -> Result<Prepared, Attempt> {
    let (taking, vm_id, vm_name, path) = (take.clone(), vm.id, vm.name.clone(), plain(&prepare.path));
    let keep = tokio::task::spawn_blocking(move || {
        let captured = taking()?;
        let (repository, private) = match &captured.repo {
            Some(repo) => (repo.top.clone(), false),
            None => (record::private(vm_id, &path)?, true),
        };
        let git = if private { private_repository(&repository)? } else { worktree::Git::at(&repository) };
        let source = Some(captured.root.clone());
        let known = Record::load(vm_id, &path)?.map(|record| record.bases).unwrap_or_default();
        let record = Record { vm: vm_id, vm_name, path, source, repository, private, bases: known };
        let references = record.references();
        let base = Snapshot { git: &git, references: &references }.take(&captured)?;
        Ok::<_, Attempt>(Kept { captured, record, base })
    });
    let kept = keep.await.map_err(|error| ApiError::internal(format!("the capture failed: {error}")))??;
    let Kept { mut captured, mut record, base } = kept;
    captured.about.base = Some(base.commit.clone());
    let tree = Arc::new(std::mem::take(&mut captured.tree));
    let session = SessionId::new();
    let stream = ByteStream::open_within(client.bus(), session, deadline::TRANSFER).await.map_err(ApiError::from)?;
    let source = Source::Upload { session, about: captured.about.clone() };
    let operation = begin(client, prepare, source).await?;
    let id = operation.id;
    // Known before the VM has it: who dies in between finds the snapshot by what the VM says its base is.
    record.advance(id, base.clone());
    record.save()?;
    match carry(client, stream, operation, tree.clone(), bar).await {
        Ok((operation, sent)) => {
            record.references().settle(&record.git(), &base)?;
            captured.tree = Arc::try_unwrap(tree).unwrap_or_else(|shared| (*shared).clone());
            let warnings = captured.warnings.clone();
            Ok(Prepared { operation, sent, captured, warnings })
        }
        Err(error) => {
            if let Attempt::Changed(_, Some(path)) = &error {
                captured.distrust(path);
            }
            record.retreat(id);
            record.save()?;
            Err(error)
        }
    }
}

/// Sends a tree while the operation is watched.
async fn carry(
    client: &Client,
    stream: ByteStream,
    operation: Operation,
    tree: Arc<tree::Tree>,
    bar: &Bar,
) -> Result<(Operation, Sent), Attempt> {
    bar.phase("waiting for the VM");
    let shown = bar.clone();
    let id = operation.id;
    let upload = tree::upload(stream, tree, move |progress| shown.progress(progress));
    let follow = wait::follow(client, operation, None, |_| Ok(()));
    tokio::pin!(upload, follow);
    tokio::select! {
        ended = &mut follow => {
            // It says why; what is sent still goes nowhere. A success was told before the stream's end was.
            let operation = wait::succeeded(ended.map_err(of_failure)?)?;
            let sent = upload.await.map_err(of_send)?;
            Ok((operation, sent))
        }
        sent = &mut upload => match sent {
            Ok(sent) => Ok((wait::succeeded(follow.await.map_err(of_failure)?)?, sent)),
            Err(error @ (SendError::Changed { .. } | SendError::Read { .. })) => {
                // Its end is waited for, so that the next one does not queue behind it.
                let ended = follow.await.map(|operation| operation.state);
                tracing::debug!(?ended, %id, "the prepare ended, as its tree changed");
                Err(of_send(error))
            }
            // The operation's error says more than the stream's end.
            Err(error) => {
                wait::succeeded(follow.await.map_err(of_failure)?)?;
                Err(of_send(error))
            }
        },
        interrupted = tokio::signal::ctrl_c() => {
            tracing::debug!(?interrupted, "Ctrl-C");
            client.change::<operation::Cancel>(&OperationRef { id }, deadline::QUICK).await?;
            Err(ApiError::cancelled("the prepare was called off; the VM's tree is what it was").into())
        }
    }
}

/// Asks for a prepare.
pub(super) async fn begin(client: &Client, prepare: &Prepare, source: Source) -> Result<Operation, ApiError> {
    let request = PrepareRequest {
        vm: prepare.vm.clone(),
        path: prepare.path.clone(),
        owner: prepare.owner.clone(),
        source,
        placing: prepare.placing,
        force: prepare.force,
        clean: prepare.clean,
        wait: false,
        timeout_ms: deadline::WAIT_DEFAULT_MS,
    };
    client.change::<contract_worktree::Prepare>(&request, deadline::QUICK).await
}

pub(super) fn of_failure(failure: Failure) -> ApiError {
    match failure {
        Failure::Api(error) => *error,
        Failure::OutputClosed => ApiError::internal("standard output is closed"),
    }
}

fn of_send(error: SendError) -> Attempt {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    match error {
        SendError::Changed { path } => {
            let error = ApiError::new(ErrorCode::Aborted, text);
            Attempt::Changed(error.hint("something writes there; try again when it is done"), Some(Box::new(path)))
        }
        SendError::Read { .. } | SendError::Refused(_) => Attempt::Failed(ApiError::failed_precondition(text)),
        SendError::Stream(_) => {
            Attempt::Failed(ApiError::unavailable(text).hint("does the VM still run? Prepare again"))
        }
        SendError::Protocol(_) => Attempt::Failed(ApiError::internal(text)),
    }
}

/// The path as the service will write it: one slash between names.
pub(super) fn plain(path: &str) -> String {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    format!("/{}", names.join("/"))
}

/// Unpacks the archive on standard input beside the cache, and captures it.
///
/// # Errors
/// It is no archive, or cannot be written.
pub fn unpacked() -> Result<Taking, ApiError> {
    let cache = record::cache_dir()?;
    let scratch = cache.join("scratch");
    let unpack = || {
        std::fs::create_dir_all(&scratch)?;
        let dir = tempfile::Builder::new().prefix("archive-").tempdir_in(&scratch)?;
        let place = Place::find(&dir.path().to_string_lossy(), true, Owner::Own).map_err(std::io::Error::other)?;
        place.unpack(std::io::stdin().lock(), || Ok(()))?;
        Ok::<_, std::io::Error>(dir)
    };
    let dir = unpack().map_err(|error| {
        ApiError::invalid_argument(format!("the archive on standard input cannot be unpacked: {error}"))
    })?;
    let options =
        Options { history: contract_worktree::History::None, include_ignored: Vec::new(), dirty: true, cache };
    Ok(Arc::new(move || capture_plain(dir.path(), &options)))
}

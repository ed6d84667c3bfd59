//! **Preparing**: a worktree is captured and kept as a snapshot, then sent while the operation is watched.

use std::{path::PathBuf, sync::Arc};

use archive::{Owner, Place};
use bus::ByteStream;
use contract::{
    ApiError, SessionId, deadline,
    operation::Operation,
    vm::{self, Vm, VmRef},
    worktree::{self as contract_worktree, Placing, PrepareRequest, Source},
};
use tree::Sent;
use worktree::{Captured, Options, Snapshot, WorktreeError, capture, capture_plain, private_repository};

use super::{
    bar::Bar,
    carry::{Carried, Unsent, carry},
    record::{self, Record},
};
use crate::{client::Client, failure::Failure};

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
/// The worktree cannot be taken, the VM refuses it, or the transfer was cut off; the VM's tree is what it was then, unless the error says
/// that this is not known.
pub async fn prepare(client: &Client, prepare: &Prepare, take: &Taking, bar: &Bar) -> Result<Prepared, Failure> {
    let vm = client.ask::<vm::Get>(&VmRef { vm: prepare.vm.clone() }).await?;
    for last in (1..=CAPTURES).map(|attempt| attempt == CAPTURES) {
        bar.phase("reading the worktree");
        match attempt(client, prepare, &vm, take, bar).await {
            Err(Unsent::Changed(..)) if !last => {}
            Err(Unsent::Changed(error, _) | Unsent::Failed(error)) => return Err(error.into()),
            Ok(prepared) => return Ok(prepared),
        }
    }
    Err(ApiError::internal("a prepare ended without an outcome").into())
}

impl From<WorktreeError> for Unsent {
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

async fn attempt(client: &Client, prepare: &Prepare, vm: &Vm, take: &Taking, bar: &Bar) -> Result<Prepared, Unsent> {
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
        Ok::<_, Unsent>(Kept { captured, record, base })
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
        Carried::Stands(operation, sent) => {
            record.references().settle(&record.git(), &base)?;
            captured.tree = Arc::try_unwrap(tree).unwrap_or_else(|shared| (*shared).clone());
            let warnings = captured.warnings.clone();
            Ok(Prepared { operation: *operation, sent, captured, warnings })
        }
        Carried::Undone(why) => {
            if let Unsent::Changed(_, Some(path)) = &why {
                captured.distrust(path);
            }
            record.retreat(id);
            record.save()?;
            if let Some((_, base)) = record.bases.first() {
                record.references().keep(&record.git(), base)?;
            }
            Err(why)
        }
        // Both the old snapshot and the new one stay: the VM's base may be either.
        Carried::Unknown(error) => Err(error.into()),
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

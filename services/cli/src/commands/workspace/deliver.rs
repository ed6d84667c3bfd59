//! `warren workspace export`: what came out becomes a patch, commits, an archive, or changes of the worktree here.

use std::{
    fs::{self, File},
    io::{self, IsTerminal, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use contract::{
    ApiError, MebiBytes,
    worktree::{Node, Workspace},
};
use serde::Serialize;
use worktree::{Applied, Export, Imported, Look, Repo, apply, import_commits, patch};

use super::{
    diff,
    export::{self, Fetched, Origin, Taking},
};
use crate::{
    args::{ExportArgs, ExportFormat, Global},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
};

/// What was made of an export.
#[derive(Debug, Default, Serialize)]
pub struct Delivered {
    /// How many paths had changed.
    pub changes: usize,
    /// Where a patch or archive was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<std::path::PathBuf>,
    /// The reference commits came back as.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Where it leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// How many commits were made in the VM.
    pub commits: u64,
    /// What was not committed there is one more.
    pub uncommitted: bool,
    /// Files written in the worktree, of those merged ones, and files removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied: Option<Counts>,
    /// What was left out or not taken along, and what else there is to say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Those of them that would be lost with the VM.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<String>,
}

/// What was done to a worktree.
#[derive(Debug, Serialize)]
pub struct Counts {
    /// Files and links written.
    pub written: usize,
    /// Of those, texts merged with changes made here.
    pub merged: usize,
    /// Files and links removed.
    pub removed: usize,
    /// Changes that were here already.
    pub present: usize,
}

impl From<Applied> for Counts {
    fn from(applied: Applied) -> Self {
        let Applied { written, merged, removed, present } = applied;
        Self { written, merged, removed, present }
    }
}

/// How an export is delivered.
#[derive(Clone, Debug, Default)]
pub struct Delivery {
    /// As what.
    pub format: ExportFormat,
    /// Into which file; standard output where none is named.
    pub file: Option<std::path::PathBuf>,
    /// Into the worktree.
    pub apply: bool,
    /// Another directory than the one the workspace was prepared from.
    pub into: Option<std::path::PathBuf>,
}

/// Exports.
///
/// # Errors
/// What the service answered, changes that do not fit, or nothing here knows what was sent.
pub async fn run(global: &Global, format: Format, args: ExportArgs) -> Result<Outcome, Failure> {
    let taking = Taking {
        commits: args.format == ExportFormat::Commits,
        max_bytes: args.max_bytes.as_deref().map(bytes).transpose()?.unwrap_or(contract::worktree::EXPORT_BYTES),
        max_entries: args.max_entries.unwrap_or(contract::worktree::EXPORT_ENTRIES),
        ..Taking::of(&args.place.vm, args.place.path.as_deref())
    };
    let delivery = Delivery { format: args.format, file: args.file, apply: args.apply, into: args.into };
    check(&delivery, format)?;
    let client = Client::connect(global).await?;
    let delivered = export(&client, &taking, &delivery).await?;
    match format {
        Format::Json => output::json(&delivered)?,
        Format::Table => tell(&delivered, &delivery)?,
    }
    Ok(Outcome::Done)
}

fn bytes(text: &str) -> Result<u64, ApiError> {
    let size: MebiBytes = super::super::parse(text)?;
    Ok(u64::from(size.0) << 20)
}

/// Refuses what cannot be delivered before anything is fetched.
///
/// # Errors
/// It is so.
pub fn check(delivery: &Delivery, format: Format) -> Result<(), ApiError> {
    if delivery.apply && delivery.format != ExportFormat::Patch {
        let hint =
            "commits come as a reference to be merged, an archive is unpacked; --apply alone makes the changes here";
        return Err(ApiError::invalid_argument("--apply goes with the format patch only").hint(hint));
    }
    if delivery.format == ExportFormat::Commits && delivery.file.is_some() {
        return Err(ApiError::invalid_argument("commits come into the repository, not into a file")
            .hint("leave --file out, or ask for a patch"));
    }
    let standard_output = delivery.file.is_none() && !delivery.apply && delivery.format != ExportFormat::Commits;
    if standard_output && format == Format::Json {
        return Err(ApiError::invalid_argument("a patch or archive and JSON cannot both go to standard output")
            .hint("name a file with --file"));
    }
    if standard_output && delivery.format == ExportFormat::Tar && io::stdout().is_terminal() {
        return Err(ApiError::invalid_argument("an archive is not for a terminal")
            .hint("name a file with --file, or pipe it on"));
    }
    if delivery.format == ExportFormat::Tar && delivery.into.is_some() {
        return Err(ApiError::invalid_argument("--into does not go with the format tar")
            .hint("an archive is of files and needs no repository: name where it is written with --file"));
    }
    match &delivery.file {
        Some(file) if file.exists() => {
            Err(ApiError::new(contract::ErrorCode::AlreadyExists, format!("{} exists", file.display()))
                .hint("name another file: none is written over"))
        }
        _ => Ok(()),
    }
}

/// Takes changes out and delivers them; only then the export counts.
///
/// # Errors
/// See [`run`].
pub async fn export(client: &Client, taking: &Taking, delivery: &Delivery) -> Result<Delivered, Failure> {
    let fetched = export::fetch(client, taking).await?;
    finish(client, fetched, delivery).await
}

/// Delivers what was taken out. To be awaited to its end: what is written here is all of it or none.
///
/// # Errors
/// See [`run`].
pub async fn finish(client: &Client, fetched: Fetched, delivery: &Delivery) -> Result<Delivered, Failure> {
    let delivery = delivery.clone();
    let work = tokio::task::spawn_blocking(move || {
        let delivered = deliver(&fetched, &delivery);
        (fetched, delivered)
    });
    let (fetched, delivered) = work.await.map_err(|error| ApiError::internal(format!("the export failed: {error}")))?;
    match delivered {
        Ok(delivered) => {
            fetched.accept(client).await?;
            Ok(delivered)
        }
        Err(failure) => {
            // What went wrong here is the reason, whatever becomes of the operation.
            if let Err(error) = fetched.leave(client).await {
                tracing::debug!(?error, "the export was not called off");
            }
            Err(failure)
        }
    }
}

fn deliver(fetched: &Fetched, delivery: &Delivery) -> Result<Delivered, Failure> {
    let export = fetched.export();
    let changes = export.changes;
    let mut delivered = Delivered {
        changes: changes.changes.iter().filter(|change| !diff::is_directory(change)).count(),
        warnings: changes.warnings.clone(),
        losses: changes.lost().to_vec(),
        file: delivery.file.clone(),
        ..Delivered::default()
    };
    if delivery.format == ExportFormat::Tar {
        write_out(delivery.file.as_deref(), |to| archive(&export, to))?;
        let gone = changes.changes.iter().filter(|change| change.after.is_none()).map(|change| change.path.to_string());
        delivered.warnings.extend(gone.take(64).map(|path| format!("{path} was removed in the VM")));
        return Ok(delivered);
    }
    let origin = Origin::find(&fetched.workspace, changes, delivery.into.as_deref())?;
    let taken = origin.take(&export)?;
    if delivery.format == ExportFormat::Commits {
        import(&fetched.workspace, &origin, &export, &taken, delivery, &mut delivered)?;
    } else if delivery.apply {
        let root = origin.root.as_deref().ok_or_else(|| {
            ApiError::failed_precondition("the workspace was not prepared from a directory here")
                .hint("name the directory with --into")
        })?;
        delivered.applied = Some(apply(root, &origin.git, &export, &taken).map_err(ApiError::from)?.into());
    }
    if delivery.format == ExportFormat::Patch && (delivery.file.is_some() || !delivery.apply) {
        match &delivery.file {
            None => diff::print(&origin, &taken.commit, Look::Patch)?,
            file => write_out(file.as_deref(), |to| {
                let written = patch(&origin.git, &origin.base.commit, &taken.commit, Look::Patch, to);
                written.map_err(io::Error::other)
            })?,
        }
    }
    Ok(delivered)
}

fn import(
    workspace: &Workspace,
    origin: &Origin,
    export: &Export<'_>,
    taken: &worktree::Taken,
    delivery: &Delivery,
    delivered: &mut Delivered,
) -> Result<(), ApiError> {
    let into = delivery.into.as_deref().or(origin.root.as_deref()).unwrap_or(Path::new("."));
    let none = || {
        ApiError::failed_precondition(format!("{} is no repository: commits have no place there", into.display()))
            .hint("name one with --into, or ask for a patch")
    };
    let repo = Repo::find(into)?.ok_or_else(none)?;
    if repo.commit(&origin.base.commit)?.is_none() {
        let message = format!(
            "{} does not have the commit {}:{} was prepared at",
            into.display(),
            workspace.vm_name,
            workspace.path
        );
        return Err(ApiError::failed_precondition(message).hint("name the repository it was prepared from with --into"));
    }
    if let Some(Imported { reference, commit, commits, uncommitted, left_out }) =
        import_commits(&repo, &origin.references, &origin.base, export, taken)?
    {
        delivered.reference = Some(reference);
        delivered.commit = Some(commit);
        delivered.commits = commits;
        delivered.uncommitted = uncommitted;
        if left_out > 0 {
            let line = format!("{left_out} changes in submodules are in no commit here; a patch has them");
            delivered.warnings.push(line.clone());
            delivered.losses.push(line);
        }
    }
    Ok(())
}

/// Writes into a new file, whole or not at all, or to standard output.
fn write_out(
    file: Option<&Path>,
    write: impl FnOnce(&mut (dyn Write + Send)) -> io::Result<()>,
) -> Result<(), Failure> {
    let Some(file) = file else {
        let mut out = io::stdout();
        return write(&mut out).and_then(|()| out.flush()).map_err(|error| Failure::writing(&error));
    };
    let all = || {
        let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut temporary = tempfile::Builder::new()
            .prefix(".warren-export-")
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(dir)?;
        write(temporary.as_file_mut())?;
        temporary.persist_noclobber(file).map_err(|error| error.error)?;
        Ok::<_, io::Error>(())
    };
    all()
        .map_err(|error| ApiError::failed_precondition(format!("{} cannot be written: {error}", file.display())).into())
}

/// The changed files as an archive, with the modes they have in the VM.
fn archive(export: &Export<'_>, to: &mut (dyn Write + Send)) -> io::Result<()> {
    let mut archive = tar::Builder::new(to);
    for change in &export.changes.changes {
        let path = change.path.as_path();
        let mut header = tar::Header::new_gnu();
        header.set_mtime(time::OffsetDateTime::now_utc().unix_timestamp().cast_unsigned());
        match &change.after {
            None => {}
            Some(Node::Directory { mode }) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                header.set_size(0);
                archive.append_data(&mut header, path, io::empty())?;
            }
            Some(Node::Symlink { target }) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                archive.append_link(&mut header, path, target.as_path())?;
            }
            Some(Node::File { mode, size, .. }) => {
                header.set_mode(*mode);
                header.set_size(*size);
                archive.append_data(&mut header, path, File::open(export.quarantine.join("tree").join(path))?)?;
            }
        }
    }
    archive.into_inner()?.flush()
}

fn tell(delivered: &Delivered, delivery: &Delivery) -> Result<(), Failure> {
    for warning in &delivered.warnings {
        output::note(&output::clean(warning));
    }
    let text = match (&delivered.applied, &delivered.reference, delivery.format) {
        (Some(applied), ..) => format!(
            "{} files written ({} merged), {} removed, {} were as in the VM\n",
            applied.written, applied.merged, applied.removed, applied.present
        ),
        (None, Some(reference), _) => {
            let top = if delivered.uncommitted { " and what was not committed" } else { "" };
            format!("{reference} holds {} commits of the VM{top}\ntry: git merge {reference}\n", delivered.commits)
        }
        (None, None, ExportFormat::Commits) => "there are no commits and no changes in the VM\n".to_owned(),
        _ => match &delivery.file {
            Some(file) => format!("{} holds {} changes\n", file.display(), delivered.changes),
            None => return Ok(()),
        },
    };
    output::text(&output::clean(&text))
}

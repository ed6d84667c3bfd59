//! `warren workspace …`: worktrees into VMs and what changed there back out.
//!
//! [`prepare`] and [`export`] are the ways themselves, for whatever builds on them; the rest is what a user types.

mod bar;
mod carry;
pub mod deliver;
mod diff;
pub mod export;
mod log;
mod look;
pub mod prepare;
pub mod record;
pub mod source;
mod sync;

pub use bar::Bar;

use contract::{
    ApiError, deadline,
    operation::Operation,
    worktree::{
        self as contract_worktree, Get, List, ListRequest, Placing, Remove, RemoveRequest, Source, Workspace,
        WorkspaceRef,
    },
};
use time::format_description::well_known::Rfc3339;
use worktree::Options;

use self::{
    prepare::{Prepare, Prepared},
    record::Record,
    source::Origin,
};
use crate::{
    args::{Dirty, Global, PrepareArgs, TakeArgs, WorkspaceCommand, WorkspacePlace},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
    wait,
};

/// The workspaces of one request for a list.
const PAGE: u32 = 200;

/// Runs a command about workspaces.
///
/// # Errors
/// What the service answered, or what is wrong with the files here.
pub async fn run(global: &Global, format: Format, command: WorkspaceCommand) -> Result<Outcome, Failure> {
    match command {
        WorkspaceCommand::Prepare(args) => run_prepare(global, format, args).await,
        WorkspaceCommand::Export(args) => deliver::run(global, format, args).await,
        WorkspaceCommand::Diff(args) => diff::run(global, format, args).await,
        WorkspaceCommand::Sync(args) => sync::run(global, format, args).await,
        WorkspaceCommand::Ls { vm } => list(global, format, vm).await,
        WorkspaceCommand::Show { place } => {
            let workspace = Client::connect(global).await?.ask::<Get>(&reference(place)).await?;
            match format {
                Format::Json => output::json(&workspace)?,
                Format::Table => show(&workspace)?,
            }
            Ok(Outcome::Done)
        }
        WorkspaceCommand::Rm { place, keep_files, force, waiting } => {
            remove(global, format, place, (keep_files, force), waiting.no_wait).await
        }
        WorkspaceCommand::Log { vm, limit } => log::run(global, format, &vm, limit).await,
    }
}

fn reference(place: WorkspacePlace) -> WorkspaceRef {
    WorkspaceRef { vm: place.vm, path: place.path }
}

/// What the arguments say of taking a worktree.
///
/// # Errors
/// Something of it is malformed, or the user has no home for the cache.
pub fn options(take: &TakeArgs) -> Result<Options, ApiError> {
    Ok(Options {
        history: take.history.as_deref().map(source::history).transpose()?.unwrap_or_default(),
        include_ignored: take.include_ignored.clone(),
        dirty: take.dirty != Some(Dirty::No),
        cache: record::cache_dir()?,
    })
}

async fn run_prepare(global: &Global, format: Format, args: PrepareArgs) -> Result<Outcome, Failure> {
    let options = options(&args.take)?;
    let origin = Origin::parse(&args.source);
    let asked = Prepare {
        vm: args.vm.clone(),
        path: args.path.clone(),
        owner: args.owner.clone(),
        placing: Placing::Swap,
        force: args.force,
        clean: args.clean,
    };
    source::check(&origin, &args)?;
    let source = match origin {
        Origin::Here(dir) => return upload(global, format, &asked, prepare::taking(dir, options)).await,
        Origin::Archive => {
            let taking = tokio::task::spawn_blocking(prepare::unpacked).await;
            let taking = taking.map_err(|error| ApiError::internal(format!("the archive was not read: {error}")))??;
            return upload(global, format, &asked, taking).await;
        }
        Origin::Git(url) => Source::Git { url, reference: args.reference, history: options.history },
        Origin::Host(path) => Source::Host { path },
    };
    let client = Client::connect(global).await?;
    let operation = prepare::begin(&client, &asked, source).await?;
    wait::settle(&client, operation, format, false, async |operation| {
        let summary = summary(&operation);
        output::text(&format!(
            "{}:{} is prepared: {}\n",
            output::clean(&asked.vm),
            prepare::plain(&asked.path),
            tell(&summary)
        ))
    })
    .await
}

async fn upload(global: &Global, format: Format, asked: &Prepare, taking: prepare::Taking) -> Result<Outcome, Failure> {
    let client = Client::connect(global).await?;
    let bar = Bar::new(format);
    let prepared = prepare::prepare(&client, asked, &taking, &bar).await;
    bar.finish();
    let prepared = prepared?;
    match format {
        Format::Json => output::json(&prepared.operation)?,
        Format::Table => {
            warn(&prepared);
            let about = &prepared.captured.about;
            let at = about.head.as_ref().map(|head| format!(" at {}", &head[..head.len().min(12)])).unwrap_or_default();
            output::text(&format!(
                "{}:{} is {}{at}: {}\n",
                output::clean(&asked.vm),
                output::clean(&prepare::plain(&asked.path)),
                output::clean(&about.origin),
                tell(&prepared.sent.summary)
            ))?;
        }
    }
    Ok(Outcome::Done)
}

/// Says what was left out, here and in the VM.
pub fn warn(prepared: &Prepared) {
    for warning in prepared.warnings.iter().chain(&prepared.sent.summary.warnings) {
        output::note(&output::clean(warning));
    }
}

/// What an operation moved.
fn summary(operation: &Operation) -> contract_worktree::TransferSummary {
    let summary = operation.result.as_ref().map(|result| result["summary"].clone());
    summary.and_then(|summary| serde_json::from_value(summary).ok()).unwrap_or_default()
}

fn tell(summary: &contract_worktree::TransferSummary) -> String {
    if summary.unchanged {
        return format!("{} entries, unchanged", summary.entries);
    }
    let bytes = indicatif::BinaryBytes(summary.moved_bytes);
    format!("{} entries, {} files sent ({bytes})", summary.entries, summary.moved_files)
}

async fn list(global: &Global, format: Format, vm: Option<String>) -> Result<Outcome, Failure> {
    let client = Client::connect(global).await?;
    let mut request = ListRequest { vm, limit: Some(PAGE), after: None };
    let mut workspaces: Vec<Workspace> = Vec::new();
    loop {
        let page = client.ask::<List>(&request).await?;
        let end = !page.more || page.workspaces.is_empty();
        workspaces.extend(page.workspaces);
        if end {
            break;
        }
        request.after = workspaces.last().map(|last| last.id);
    }
    match format {
        Format::Json => output::json(&contract_worktree::Workspaces { workspaces, more: false })?,
        Format::Table => {
            let rows = workspaces.iter().map(|it| {
                vec![
                    it.vm_name.to_string(),
                    it.path.clone(),
                    it.about.origin.clone(),
                    it.about.branch.clone().unwrap_or_default(),
                    it.about.head.as_ref().map(|head| head.chars().take(12).collect()).unwrap_or_default(),
                    it.entries.to_string(),
                    indicatif::BinaryBytes(it.bytes).to_string(),
                    it.prepared_at.map(output::age).unwrap_or_else(|| "never".to_owned()),
                    it.exported_at.map(output::age).unwrap_or_default(),
                ]
            });
            let header = ["VM", "PATH", "FROM", "BRANCH", "COMMIT", "ENTRIES", "SIZE", "PREPARED", "EXPORTED"];
            output::table(&header, rows.collect())?;
        }
    }
    Ok(Outcome::Done)
}

fn show(it: &Workspace) -> Result<(), Failure> {
    let time = |at: Option<time::OffsetDateTime>| at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default();
    let some = |text: &Option<String>| text.clone().unwrap_or_default();
    let history = it.about.history.map(|history| match history {
        contract_worktree::History::Full => "full".to_owned(),
        contract_worktree::History::Depth(depth) => format!("depth {depth}"),
        contract_worktree::History::None => "none".to_owned(),
    });
    output::pairs(vec![
        ("id", it.id.to_string()),
        ("vm", it.vm_name.to_string()),
        ("path", it.path.clone()),
        ("owner", some(&it.owner)),
        ("from", it.about.origin.clone()),
        ("branch", some(&it.about.branch)),
        ("upstream", some(&it.about.upstream)),
        ("commit", some(&it.about.head)),
        ("snapshot", some(&it.about.base)),
        ("history", history.unwrap_or_default()),
        ("entries", it.entries.to_string()),
        ("size", indicatif::BinaryBytes(it.bytes).to_string()),
        ("prepared", time(it.prepared_at)),
        ("exported", time(it.exported_at)),
        ("generation", it.generation.map(|id| id.to_string()).unwrap_or_default()),
        ("operation", it.operation.map(|id| id.to_string()).unwrap_or_default()),
    ])
}

async fn remove(
    global: &Global,
    format: Format,
    place: WorkspacePlace,
    (keep_files, force): (bool, bool),
    no_wait: bool,
) -> Result<Outcome, Failure> {
    let client = Client::connect(global).await?;
    // What is known here is found by the VM's id, which it keeps when it is renamed.
    let workspace = client.ask::<Get>(&reference(place)).await?;
    let request = RemoveRequest {
        vm: workspace.vm.to_string(),
        path: Some(workspace.path.clone()),
        keep_files,
        force,
        wait: false,
        timeout_ms: deadline::WAIT_DEFAULT_MS,
    };
    let operation = client.change::<Remove>(&request, deadline::QUICK).await?;
    let others = client.ask::<List>(&ListRequest { vm: Some(request.vm), limit: Some(2), after: None }).await?;
    let outcome = wait::settle(&client, operation, format, no_wait, async |_| {
        output::text(&format!("{}:{} is gone\n", workspace.vm_name, output::clean(&workspace.path)))
    })
    .await?;
    if matches!(outcome, Outcome::Done)
        && !no_wait
        && let Some(record) = Record::load(workspace.vm, &workspace.path)?
    {
        let last = others.workspaces.iter().all(|other| other.id == workspace.id);
        record.forget(last)?;
    }
    Ok(outcome)
}

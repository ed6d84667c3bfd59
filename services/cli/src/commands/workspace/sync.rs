//! `warren workspace sync`: a worktree and its copy in a VM are kept alike, one way.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use contract::{ApiError, worktree::Placing};
use notify::{Event, RecursiveMode, Watcher, event::EventKind};
use tokio::sync::Notify;
use tree::Tree;
use worktree::apply;

use super::{
    Bar,
    export::{self, Origin, Taking},
    look::look,
    options,
    prepare::{self, Prepare},
    warn,
};
use crate::{
    args::{Global, SyncArgs},
    client::Client,
    commands::vm::seconds,
    failure::{Failure, Outcome, SIGINT_EXIT},
    output::{self, Format},
};

/// How long it must be quiet before what changed is sent: programs write files in pieces.
const QUIET: Duration = Duration::from_millis(300);
/// How long a worktree that is never quiet is waited for.
const QUIET_MAX: Duration = Duration::from_secs(3);
/// How often a VM is asked for changes where nothing else was said.
const FROM_VM: Duration = Duration::from_secs(3);
/// The longest pause between two looks at a VM in which nothing changes, where nothing else was said: a look costs the guest a `stat` of
/// each file, and who waits for a change may wait for so long.
const LOOK_MAX: Duration = Duration::from_secs(12);
/// The longest pause where exports take nothing out, as with guests that cannot be looked at: each of them is a row for days.
const EXPORT_MAX: Duration = Duration::from_secs(60);

/// Syncs once, or until it is interrupted.
///
/// # Errors
/// What does not fit: changes on the side that only takes.
pub async fn run(global: &Global, format: Format, args: SyncArgs) -> Result<Outcome, Failure> {
    let interval =
        args.interval.as_deref().map(seconds).transpose()?.map(|seconds| Duration::from_secs(seconds.max(1)));
    let client = Client::connect(global).await?;
    let syncing = async {
        if args.from_vm {
            from_vm(&client, format, &args, interval).await
        } else {
            to_vm(&client, format, &args, interval).await
        }
    };
    if !args.watch {
        // Each of the two minds Ctrl-C itself.
        return syncing.await.map(|()| Outcome::Done);
    }
    tokio::select! {
        ended = syncing => ended.map(|()| Outcome::Done),
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.map_err(|error| ApiError::internal(error.to_string()))?;
            Ok(Outcome::Exit(SIGINT_EXIT))
        }
    }
}

async fn to_vm(client: &Client, format: Format, args: &SyncArgs, interval: Option<Duration>) -> Result<(), Failure> {
    let dir = args.source.clone().unwrap_or_else(|| PathBuf::from("."));
    super::source::check_here(&dir, &args.take)?;
    let taking = prepare::taking(dir.clone(), options(&args.take)?);
    let asked = Prepare {
        vm: args.vm.clone(),
        path: args.path.clone(),
        owner: args.owner.clone(),
        // Processes in the VM see the changes.
        placing: Placing::InPlace,
        force: args.force,
        clean: false,
    };
    // Before the first capture, so that no change falls between the two.
    let changes = match interval {
        None if args.watch => Some(watch(&dir)?),
        _ => None,
    };
    let mut sent: Option<Tree> = None;
    loop {
        // What differs is found out here, where it costs no operation.
        let now = {
            let taking = taking.clone();
            tokio::task::spawn_blocking(move || taking())
        };
        let now = now.await.map_err(|error| ApiError::internal(format!("the capture failed: {error}")))?;
        let differs = !matches!((&now, &sent), (Ok(now), Some(sent)) if same(&now.tree, sent));
        drop(now);
        if differs {
            let prepared = prepare::prepare(client, &asked, &taking, &Bar::hidden()).await?;
            warn(&prepared);
            let summary = &prepared.sent.summary;
            tell(
                format,
                &[("sent", summary.moved_files), ("bytes", summary.moved_bytes)],
                summary.unchanged && sent.is_some(),
            )?;
            sent = Some(prepared.captured.tree);
        }
        match (&changes, interval) {
            _ if !args.watch => return Ok(()),
            (Some(watched), _) => watched.changed().await,
            (None, interval) => tokio::time::sleep(interval.unwrap_or(FROM_VM)).await,
        }
    }
}

/// Whether two trees are the same to a VM.
fn same(one: &Tree, other: &Tree) -> bool {
    let pairs = one.entries().iter().zip(other.entries());
    one.entries().len() == other.entries().len()
        && pairs.into_iter().all(|(a, b)| a.path == b.path && a.node == b.node && a.mtime == b.mtime)
}

/// A directory whose changes are told by the kernel.
struct Watched {
    told: Arc<Notify>,
    _watcher: notify::RecommendedWatcher,
}

impl Watched {
    /// Waits for a change, and then until it is quiet.
    async fn changed(&self) {
        self.told.notified().await;
        let quiet = async { while tokio::time::timeout(QUIET, self.told.notified()).await.is_ok() {} };
        // Never quiet: sent all the same; what changes while it is read is found out.
        if tokio::time::timeout(QUIET_MAX, quiet).await.is_err() {
            tracing::debug!("the worktree is never quiet");
        }
    }
}

fn watch(dir: &Path) -> Result<Watched, ApiError> {
    let told = Arc::new(Notify::new());
    let tell = told.clone();
    let refuse = |error: notify::Error| {
        ApiError::failed_precondition(format!("{} cannot be watched: {error}", dir.display()))
            .hint("look by the clock instead with --interval 5s, or raise fs.inotify.max_user_watches")
    };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // An error means that events were lost: then it is looked at, too.
        if event.is_ok_and(|event| !counts(&event)) {
            return;
        }
        tell.notify_one();
    })
    .map_err(refuse)?;
    watcher.watch(dir, RecursiveMode::Recursive).map_err(refuse)?;
    Ok(Watched { told, _watcher: watcher })
}

/// Whether an event may be a change of what is sent: reading is none, nor are git's own locks and objects, or our references.
fn counts(event: &Event) -> bool {
    let own = |path: &Path| {
        let text = path.to_string_lossy();
        text.contains("/.git/objects/")
            || text.contains("/.git/refs/warren")
            || (text.contains("/.git/") && text.ends_with(".lock"))
    };
    let theirs = event.paths.is_empty() || event.paths.iter().any(|path| !own(path));
    theirs && !matches!(event.kind, EventKind::Access(_))
}

async fn from_vm(client: &Client, format: Format, args: &SyncArgs, interval: Option<Duration>) -> Result<(), Failure> {
    let taking = Taking { advance: true, ..Taking::of(&args.vm, Some(&args.path)) };
    let mut pauses = Pauses::new(interval);
    loop {
        // A look costs no operation; where it is not known, an export is asked for less and less often.
        let looked = if args.watch { look(client, &args.vm, &args.path).await } else { None };
        if looked.is_some_and(|looked| !looked.changed) {
            tokio::time::sleep(pauses.quiet()).await;
            continue;
        }
        let fetched = export::fetch(client, &taking).await?;
        let changed = take(client, format, args, fetched).await?;
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(if changed { pauses.changed() } else { pauses.in_vain() }).await;
    }
}

/// How long to wait for changes in a VM before it is asked again: longer, the longer there are none.
struct Pauses {
    least: Duration,
    /// The user said how often to look.
    fixed: bool,
    now: Duration,
}

impl Pauses {
    fn new(interval: Option<Duration>) -> Self {
        let least = interval.unwrap_or(FROM_VM);
        Self { least, fixed: interval.is_some(), now: least }
    }

    /// After changes more are to be expected.
    fn changed(&mut self) -> Duration {
        self.now = self.least;
        self.now
    }

    /// After a look that saw nothing.
    fn quiet(&mut self) -> Duration {
        if !self.fixed {
            self.longer(LOOK_MAX);
        }
        self.now
    }

    /// After an export that had nothing to take: each is an operation that is kept.
    fn in_vain(&mut self) -> Duration {
        self.longer(EXPORT_MAX);
        self.now
    }

    fn longer(&mut self, most: Duration) {
        self.now = (self.now * 2).min(most.max(self.least));
    }
}

/// Makes the VM's changes here, and only then has it forget that they are changes. Whether there were any.
async fn take(client: &Client, format: Format, args: &SyncArgs, fetched: export::Fetched) -> Result<bool, Failure> {
    let into = args.source.clone();
    let work = tokio::task::spawn_blocking(move || {
        let applied = apply_here(&fetched, into.as_deref());
        (fetched, applied)
    });
    let (fetched, applied) = work.await.map_err(|error| ApiError::internal(format!("the export failed: {error}")))?;
    let applied = match applied {
        Ok(applied) => applied,
        Err(error) => {
            if let Err(error) = fetched.leave(client).await {
                tracing::debug!(?error, "the export was not called off");
            }
            return Err(error.into());
        }
    };
    fetched.accept(client).await?;
    let nothing = applied == worktree::Applied::default();
    tell(format, &[("written", applied.written as u64), ("removed", applied.removed as u64)], nothing && args.watch)?;
    Ok(!nothing)
}

fn apply_here(fetched: &export::Fetched, into: Option<&Path>) -> Result<worktree::Applied, ApiError> {
    let export = fetched.export();
    let origin = Origin::find(&fetched.workspace, export.changes, into)?;
    let taken = origin.take(&export)?;
    let (Some(root), Some(mut record)) = (origin.root.clone(), origin.record.clone()) else {
        return Err(ApiError::failed_precondition("the workspace was not prepared from a directory here")
            .hint("prepare it here first: what the VM takes for its base has to be known"));
    };
    let applied = apply(&root, &origin.git, &export, &taken)?;
    // Known before the VM makes it its base: who dies in between finds either.
    let base = worktree::Base { commit: taken.commit.clone(), ..origin.base.clone() };
    origin.references.settle(&origin.git, &base)?;
    record.advance(fetched.operation, base);
    record.save()?;
    Ok(applied)
}

/// A line a change.
fn tell(format: Format, counts: &[(&str, u64)], silent: bool) -> Result<(), Failure> {
    if silent {
        return Ok(());
    }
    match format {
        Format::Json => {
            let fields: serde_json::Map<_, _> =
                counts.iter().map(|(name, count)| ((*name).to_owned(), (*count).into())).collect();
            output::json_line(&fields)
        }
        Format::Table => {
            let words: Vec<_> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
            output::text(&format!("{}\n", words.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_nothing_changes_and_shrink_when_something_does() {
        let seconds = |text: &mut Pauses, next: fn(&mut Pauses) -> Duration, times: usize| {
            (0..times).map(|_| next(text).as_secs()).collect::<Vec<_>>()
        };
        let mut pauses = Pauses::new(None);
        assert_eq!(seconds(&mut pauses, Pauses::quiet, 4), [6, 12, 12, 12]);
        assert_eq!(seconds(&mut pauses, Pauses::changed, 1), [3]);
        assert_eq!(seconds(&mut pauses, Pauses::in_vain, 6), [6, 12, 24, 48, 60, 60]);
        // Who says how often is looked for is taken at his word; what costs an operation each time is not.
        let mut pauses = Pauses::new(Some(Duration::from_secs(90)));
        assert_eq!(seconds(&mut pauses, Pauses::quiet, 2), [90, 90]);
        assert_eq!(seconds(&mut pauses, Pauses::in_vain, 2), [90, 90]);
    }
}

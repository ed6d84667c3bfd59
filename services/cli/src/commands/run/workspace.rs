//! The workspace of a run: what goes into the VM, and what is brought back.

use std::path::PathBuf;

use contract::{ApiError, VmName, worktree::Placing};

use crate::{
    args::{Bring, ExportFormat, RunArgs, TakeArgs},
    client::Client,
    commands::workspace::{
        Bar,
        deliver::{self, Delivered, Delivery},
        export::{self, Fetched, Taking},
        options,
        prepare::{self, Prepare},
        source, warn,
    },
    failure::Failure,
    output::{self, Format},
};

/// What goes in and comes back.
pub struct Work {
    taking: prepare::Taking,
    path: String,
    owner: Option<String>,
    format: Format,
    commits: bool,
    delivery: Option<Delivery>,
}

impl Work {
    /// What the arguments ask for; none where there is no workspace.
    ///
    /// # Errors
    /// The directory cannot be one, or the changes have no place to go: found out before there is a VM.
    pub fn of(args: &RunArgs, name: &VmName, format: Format) -> Result<Option<Self>, ApiError> {
        let Some(dir) = args.workspace.clone() else { return Ok(None) };
        if !dir.is_dir() {
            return Err(ApiError::invalid_argument(format!("{} is no directory", dir.display()))
                .hint("--workspace names a directory here, usually a git worktree"));
        }
        let take =
            TakeArgs { history: args.history.clone(), include_ignored: args.include_ignored.clone(), dirty: None };
        let options = options(&take)?;
        source::check_here(&dir, &take)?;
        if args.file.is_some() && args.export != Bring::Patch {
            return Err(ApiError::invalid_argument("--file goes with --export patch")
                .hint("commits and changes that are applied go into the directory itself"));
        }
        let delivery = match args.export {
            Bring::None => None,
            Bring::Patch => Some(Delivery { file: Some(patch(args, name)), ..Delivery::default() }),
            Bring::Commits => Some(Delivery { format: ExportFormat::Commits, ..Delivery::default() }),
            Bring::Apply => Some(Delivery { apply: true, ..Delivery::default() }),
        };
        if let Some(delivery) = &delivery {
            deliver::check(delivery, format)?;
        }
        Ok(Some(Self {
            taking: prepare::taking(dir, options),
            path: args.path.clone(),
            owner: args.command.user.clone(),
            format,
            commits: args.export == Bring::Commits,
            delivery,
        }))
    }

    /// Whether anything is brought back.
    pub fn exports(&self) -> bool {
        self.delivery.is_some()
    }

    /// Puts the directory into the VM.
    pub async fn prepare(&self, client: &Client, vm: &str) -> Result<(), Failure> {
        let asked = Prepare {
            vm: vm.to_owned(),
            path: self.path.clone(),
            owner: self.owner.clone(),
            placing: Placing::Swap,
            force: false,
            clean: false,
        };
        let bar = Bar::new(self.format);
        let prepared = prepare::prepare(client, &asked, &self.taking, &bar).await;
        bar.finish();
        warn(&prepared?);
        Ok(())
    }

    /// Takes out what was asked for, into a place aside.
    pub async fn fetch(&self, client: &Client, vm: &str) -> Result<Fetched, Failure> {
        let taking = Taking { commits: self.commits, ..Taking::of(vm, Some(&self.path)) };
        export::fetch(client, &taking).await
    }

    /// Brings back what was taken out; what would be lost with the VM all the same. Said on standard error, as standard output is the
    /// command's. To be awaited to its end.
    pub async fn deliver(&self, client: &Client, fetched: Fetched) -> Result<Vec<String>, Failure> {
        let Some(delivery) = &self.delivery else { return Ok(Vec::new()) };
        let delivered = deliver::finish(client, fetched, delivery).await?;
        // What would be lost is said when the VM is kept for it.
        for warning in delivered.warnings.iter().filter(|warning| !delivered.losses.contains(warning)) {
            output::note(&output::clean(warning));
        }
        if self.format == Format::Table {
            output::note(&output::clean(&told(&delivered)));
        }
        Ok(delivered.losses)
    }
}

fn patch(args: &RunArgs, name: &VmName) -> PathBuf {
    args.file.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.patch")))
}

fn told(delivered: &Delivered) -> String {
    let changes = delivered.changes;
    match (&delivered.applied, &delivered.reference, &delivered.file) {
        (Some(applied), ..) => format!(
            "{changes} changes came back: {} files written ({} merged), {} removed, {} were so here",
            applied.written, applied.merged, applied.removed, applied.present
        ),
        (_, Some(reference), _) => {
            let top = if delivered.uncommitted { " and what was not committed" } else { "" };
            format!("{} commits{top} came back as {reference}", delivered.commits)
        }
        (.., Some(file)) => format!("{changes} changes came back in {}", file.display()),
        _ => "nothing changed in the VM".to_owned(),
    }
}

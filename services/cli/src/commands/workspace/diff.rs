//! `warren workspace diff`: what changed in a VM, shown and left there.

use std::io::{IsTerminal, Write};

use contract::{
    ApiError,
    worktree::{Change, ChangeList, Node},
};
use worktree::{Look, patch};

use super::export::{self, Origin, Taking};
use crate::{
    args::{DiffArgs, Global},
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
};

/// Shows the changes; the operation is left, so nothing counts as exported.
///
/// # Errors
/// What the service answered, or nothing here knows what was sent.
pub async fn run(global: &Global, format: Format, args: DiffArgs) -> Result<Outcome, Failure> {
    if format == Format::Json && (args.stat || args.name_only || args.into.is_some()) {
        return Err(ApiError::invalid_argument("--stat, --name-only and --into do not go with -o json")
            .hint("JSON has the list of changes, with both sides of each")
            .into());
    }
    let client = Client::connect(global).await?;
    let fetched = export::fetch(&client, &Taking::of(&args.place.vm, args.place.path.as_deref())).await?;
    let shown = show(&fetched, format, &args);
    fetched.leave(&client).await?;
    shown?;
    Ok(Outcome::Done)
}

fn show(fetched: &export::Fetched, format: Format, args: &DiffArgs) -> Result<(), Failure> {
    let changes = fetched.changes();
    for warning in &changes.warnings {
        output::note(&output::clean(warning));
    }
    if format == Format::Json {
        return output::json(changes);
    }
    if args.name_only {
        return output::text(&names(changes));
    }
    let origin = Origin::find(&fetched.workspace, changes, args.into.as_deref())?;
    let taken = origin.take(&fetched.export())?;
    let look = if args.stat { Look::Stat } else { Look::Patch };
    print(&origin, &taken.commit, look)
}

/// Prints a patch. On a terminal what a guest wrote controls nothing.
pub(super) fn print(origin: &Origin, commit: &str, look: Look) -> Result<(), Failure> {
    if !std::io::stdout().is_terminal() {
        let mut out = std::io::stdout();
        let written = patch(&origin.git, &origin.base.commit, commit, look, &mut out);
        return match written {
            Err(worktree::WorktreeError::Write { source, .. }) => Err(Failure::writing(&source)),
            Err(error) => Err(contract::ApiError::from(error).into()),
            Ok(()) => out.flush().map_err(|error| Failure::writing(&error)),
        };
    }
    let mut text = Vec::new();
    patch(&origin.git, &origin.base.commit, commit, look, &mut text).map_err(contract::ApiError::from)?;
    output::text(&output::clean(&String::from_utf8_lossy(&text)))
}

/// A letter and a path a line, as git status has them.
pub(super) fn names(changes: &ChangeList) -> String {
    let lines = changes.changes.iter().filter(|change| !is_directory(change));
    lines
        .map(|change| {
            let letter = match (&change.before, &change.after) {
                (None | Some(Node::Directory { .. }), _) => 'A',
                (_, None | Some(Node::Directory { .. })) => 'D',
                _ => 'M',
            };
            // A newline in a name is no line.
            format!("{letter} {}\n", output::clean(&change.path.to_string()).replace('\n', "\\n"))
        })
        .collect()
}

/// Whether only directories are concerned, of which patches tell nothing.
pub(super) fn is_directory(change: &Change) -> bool {
    let none_or_directory = |node: &Option<Node>| matches!(node, None | Some(Node::Directory { .. }));
    none_or_directory(&change.before) && none_or_directory(&change.after)
}

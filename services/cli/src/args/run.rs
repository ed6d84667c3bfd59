//! The arguments of `warren run`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{CommandArgs, SizeArgs};

const AFTER: &str = "\
The VM is deleted when the command has ended, whatever happens, unless --keep is given. Should this client be killed, the VM is
deleted once nobody has used it for 15 minutes. A VM whose changes could not all be brought back is kept, and said to be: also where
work was left in it that no export takes along, such as a stash, or commits on a branch that is not checked out.

  warren run debian -- uname -a
  warren run --workspace . --export patch python:3.13 -- python -m unittest

Ctrl-C reaches the command while it runs; before and after it, it ends everything and deletes the VM.
The exit code is the command's, 124 where its --timeout ran out; where it was not reached, that of the error.";

/// What is brought back of a workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Bring {
    /// Nothing
    None,
    /// A patch, in a file
    Patch,
    /// Commits made in the VM, as refs/warren/<vm>/<n> of the repository here
    Commits,
    /// All changes, into the directory itself
    Apply,
}

/// `warren run`
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct RunArgs {
    /// Name or id of an image, or a registry reference, which is pulled first when it is missing
    pub image: String,
    /// The VM's name [default: run- and eight random characters]
    #[arg(long)]
    pub name: Option<String>,
    /// Keep the VM
    #[arg(long, conflicts_with = "rm")]
    pub keep: bool,
    /// Delete the VM when the command has ended: the default
    #[arg(long)]
    pub rm: bool,
    /// What the VM is given.
    #[command(flatten)]
    pub size: SizeArgs,
    /// Put this directory, usually a git worktree, into the VM
    #[arg(long, value_name = "DIR")]
    pub workspace: Option<PathBuf>,
    /// Where to put it
    #[arg(long, value_name = "PATH", requires = "workspace", default_value = contract::worktree::DEFAULT_PATH)]
    pub path: String,
    /// How much of the repository's history goes along: full, none, or a number of commits [default: full]
    #[arg(long, value_name = "HISTORY", requires = "workspace")]
    pub history: Option<String>,
    /// Take what git ignores too, where it matches this pattern; may be repeated
    #[arg(long, value_name = "PATTERN", requires = "workspace")]
    pub include_ignored: Vec<String>,
    /// What to bring back when the command has ended, whatever its exit code
    #[arg(long, value_enum, requires = "workspace", default_value_t = Bring::None)]
    pub export: Bring,
    /// Where a patch is written; never over a file that is there [default: the VM's name and .patch]
    #[arg(short, long, value_name = "FILE", requires = "workspace")]
    pub file: Option<PathBuf>,
    /// The command.
    #[command(flatten)]
    pub command: CommandArgs,
}

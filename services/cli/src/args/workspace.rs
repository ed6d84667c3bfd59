//! The arguments of `warren workspace …`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::Waiting;

/// `warren workspace …`
#[derive(Debug, Subcommand)]
pub enum WorkspaceCommand {
    /// Put a worktree, repository, directory or archive into a VM; again, only what changed is sent
    Prepare(PrepareArgs),
    /// Take out what changed in a VM since: as a patch, as commits, as files, or into the worktree here
    Export(ExportArgs),
    /// Show what changed in a VM since; that is no export
    Diff(DiffArgs),
    /// Keep a worktree and its copy in a VM alike, one way, until Ctrl-C
    Sync(SyncArgs),
    /// List workspaces
    #[command(visible_alias = "list")]
    Ls {
        /// Only this VM's (name or id)
        #[arg(long)]
        vm: Option<String>,
    },
    /// Show one workspace
    Show {
        #[command(flatten)]
        /// Which.
        place: WorkspacePlace,
    },
    /// Remove a workspace's files from its VM, and what is known of it here and there
    #[command(visible_alias = "delete")]
    Rm {
        #[command(flatten)]
        /// Which.
        place: WorkspacePlace,
        /// Keep the files; only what is known of them is forgotten
        #[arg(long)]
        keep_files: bool,
        /// Go on where changes were never exported: they are lost
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// What was put into a VM and taken out of it: when, what, how much
    Log {
        /// Name or id of the VM; of one that is gone its id
        vm: String,
        /// How many at the most (1 to 500)
        #[arg(long, default_value_t = contract::operation::default_limit())]
        limit: u32,
    },
}

/// Which workspace.
#[derive(Clone, Debug, Args)]
pub struct WorkspacePlace {
    /// Name or id of the VM
    pub vm: String,
    /// The workspace's directory in the VM [default: the VM's only one]
    #[arg(long, value_name = "DIR")]
    pub path: Option<String>,
}

/// What is taken of a worktree here.
#[derive(Clone, Debug, Args)]
pub struct TakeArgs {
    /// How much of the repository's history goes along: full, none, or the last so many commits [default: full]
    #[arg(long, value_name = "full|none|DEPTH")]
    pub history: Option<String>,
    /// Take files along that git ignores, by a pattern as in .gitignore; may be repeated
    #[arg(long, value_name = "PATTERN")]
    pub include_ignored: Vec<String>,
    /// Whether what is staged, edited and untracked goes along, or HEAD's files only [default: yes]
    #[arg(long, value_enum, value_name = "yes|no")]
    pub dirty: Option<Dirty>,
}

/// Whether a worktree is taken as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dirty {
    /// As it is.
    Yes,
    /// HEAD's files only.
    No,
}

/// `warren workspace prepare`
#[derive(Debug, Args)]
pub struct PrepareArgs {
    /// Name or id of the VM
    pub vm: String,
    /// A directory here, a git URL, host:/DIR on the VM's host, or - for a tar archive on standard input
    #[arg(default_value = ".", allow_hyphen_values = true)]
    pub source: String,
    /// The directory in the VM
    #[arg(long, value_name = "DIR", default_value = contract::worktree::DEFAULT_PATH)]
    pub path: String,
    /// Whose the files become in the VM: a user name or uid[:gid] [default: root]
    #[arg(long)]
    pub owner: Option<String>,
    /// The branch, tag or full commit id of a git URL [default: the remote's HEAD]
    #[arg(long = "ref", value_name = "REF")]
    pub reference: Option<String>,
    #[command(flatten)]
    /// What is taken.
    pub take: TakeArgs,
    /// Go on where changes in the VM were never exported, or a directory is there that is no workspace: they are lost
    #[arg(long)]
    pub force: bool,
    /// Remove what git ignores in the VM too, which otherwise stays there
    #[arg(long)]
    pub clean: bool,
}

/// How changes come out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// A patch that git apply takes, binary files too
    #[default]
    Patch,
    /// The commits that were made in the VM, as refs/warren/VM/N, with what was not committed on top
    Commits,
    /// A tar archive of the changed files
    Tar,
}

/// `warren workspace export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    /// Which.
    pub place: WorkspacePlace,
    /// How
    #[arg(long, value_enum, default_value_t)]
    pub format: ExportFormat,
    /// Where a patch or an archive is written; never over a file that is there [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Make the changes in the worktree here, or none of them where one does not fit
    #[arg(long)]
    pub apply: bool,
    /// Another directory or repository than the one the workspace was prepared from
    #[arg(long, value_name = "DIR")]
    pub into: Option<PathBuf>,
    /// Fail when the changed files have more bytes, e.g. 2G
    #[arg(long, value_name = "SIZE")]
    pub max_bytes: Option<String>,
    /// Fail when more files changed
    #[arg(long, value_name = "COUNT")]
    pub max_entries: Option<u64>,
}

/// `warren workspace diff`
#[derive(Debug, Args)]
pub struct DiffArgs {
    #[command(flatten)]
    /// Which.
    pub place: WorkspacePlace,
    /// Only numbers of lines
    #[arg(long, conflicts_with = "name_only")]
    pub stat: bool,
    /// Only names
    #[arg(long)]
    pub name_only: bool,
    /// The repository that holds what was sent, where the workspace was not prepared here; names alone need none
    #[arg(long, value_name = "DIR", conflicts_with = "name_only")]
    pub into: Option<PathBuf>,
}

/// `warren workspace sync`
#[derive(Debug, Args)]
pub struct SyncArgs {
    /// Name or id of the VM
    pub vm: String,
    /// The directory here [default: the current one; with --from-vm the one the workspace was prepared from]
    pub source: Option<PathBuf>,
    /// The directory in the VM
    #[arg(long, value_name = "DIR", default_value = contract::worktree::DEFAULT_PATH)]
    pub path: String,
    /// Go on with what changes from now on (else once)
    #[arg(short, long)]
    pub watch: bool,
    /// From the VM into the worktree here
    #[arg(long, conflicts_with_all = ["history", "include_ignored", "dirty"])]
    pub from_vm: bool,
    /// Look for changes so often, e.g. 5s, instead of being told of them by the kernel [default with --from-vm: 3s, and up to 12s
    /// while nothing changes]
    #[arg(long, value_name = "TIME", requires = "watch")]
    pub interval: Option<String>,
    /// Whose the files become in the VM
    #[arg(long, conflicts_with = "from_vm")]
    pub owner: Option<String>,
    #[command(flatten)]
    /// What is taken.
    pub take: TakeArgs,
    /// Go on over changes in the VM that were never exported: they are lost
    #[arg(long, conflicts_with = "from_vm")]
    pub force: bool,
}

//! A **command** that is run in a VM, as `warren exec` and `warren run` are told of it.

use clap::Args;

/// What to run, and how.
#[derive(Clone, Debug, Default, Args)]
pub struct CommandArgs {
    /// Pass standard input on to the command; with `exec -d`: leave it open for who attaches
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// An environment variable of the command; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Working directory of the command [default: the workspace of a run that has one]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User name or uid[:gid]; root when left out. The files of a run's workspace are this user's, too
    #[arg(short, long)]
    pub user: Option<String>,
    /// End the command after this time with SIGTERM, then SIGKILL, and exit code 124, e.g. 30s or 2h
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<String>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

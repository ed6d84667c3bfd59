//! The options of `warren image tag`.

use clap::Args;

use crate::args::Waiting;

/// `warren image tag`
#[derive(Debug, Args)]
pub struct TagArgs {
    /// Name, id or digest, or how one of these two begins
    pub image: String,
    /// The name it gets
    pub name: String,
    /// Take the name from the image that has it
    #[arg(long)]
    pub replace: bool,
    /// Whether to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

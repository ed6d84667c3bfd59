//! The options of `warren image rename`.

use clap::Args;

use crate::args::Waiting;

/// `warren image rename`
#[derive(Debug, Args)]
pub struct RenameArgs {
    /// The name as it is
    pub from: String,
    /// The name as it is to be
    pub to: String,
    /// Whether to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

//! The options of `warren image rm`.

use clap::Args;

use crate::args::Waiting;

/// `warren image rm`
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Name, id or digest, or how one of these two begins
    pub image: String,
    /// Whether to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

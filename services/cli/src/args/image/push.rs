//! The options of `warren image push`.

use clap::Args;

use crate::args::Waiting;

/// `warren image push`
#[derive(Debug, Args)]
pub struct PushArgs {
    /// Name or id
    pub image: String,
    /// The registry reference it gets, such as 127.0.0.1:5000/images/web:1
    pub reference: String,
    /// Whether to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

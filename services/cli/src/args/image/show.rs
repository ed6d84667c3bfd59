//! The options of `warren image show`.

use clap::Args;

/// `warren image show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Name, id or digest, or how one of these two begins
    pub image: String,
}

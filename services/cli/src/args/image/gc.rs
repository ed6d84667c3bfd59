//! The options of `warren image gc`.

use clap::Args;

/// `warren image gc`
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Only tell what would be done
    #[arg(long)]
    pub dry_run: bool,
}

//! The options of `warren image ls`.

use clap::Args;

/// `warren image ls`
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Also those without a name
    #[arg(long, short)]
    pub all: bool,
    /// With digests instead of sources
    #[arg(long)]
    pub digests: bool,
}

//! `warren image log`

use clap::Args;

/// Whose log to print.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// The build's operation, or the name it was for: then the last build of that name
    pub build: String,
    /// Go on until the build has ended
    #[arg(long, short)]
    pub follow: bool,
}

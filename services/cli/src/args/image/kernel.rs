//! The options of `warren image kernel`.

use clap::Args;

/// `warren image kernel`
#[derive(Debug, Args)]
pub struct ImageKernelArgs {
    /// Name, id or digest, or how one of these two begins
    pub image: String,
    /// The kernel: name, id or digest, or how one of these two begins
    #[arg(required_unless_present = "none")]
    pub kernel: Option<String>,
    /// Let it name none: the lab's default is booted, or the host's own
    #[arg(long, conflicts_with = "kernel")]
    pub none: bool,
}

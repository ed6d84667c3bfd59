//! The options of `warren image import`.

use clap::Args;

use crate::args::Waiting;

/// `warren image import`
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// A file of this machine; - for standard input; host:/PATH of the host that makes the image; object:BUCKET/NAME in a JetStream object
    /// store
    #[arg(allow_hyphen_values = true)]
    pub file: String,
    /// The name the image gets in this lab [default: the file's without .oci.tar or .tar]
    #[arg(long)]
    pub name: Option<String>,
    /// The host that shall hold it (else the one with most free disk space)
    #[arg(long)]
    pub host: Option<String>,
    /// Take the name from the image that has it; VMs keep the image they have
    #[arg(long)]
    pub replace: bool,
    /// Whether to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

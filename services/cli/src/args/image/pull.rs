//! The options of `warren image pull`.

use clap::Args;

use crate::args::Waiting;

/// `warren image pull`
#[derive(Debug, Args)]
pub struct PullArgs {
    /// A registry reference such as 127.0.0.1:5000/debian:12, or with --layout the path of an OCI layout
    pub reference: String,
    /// The name it gets in this lab
    #[arg(long)]
    pub name: String,
    /// The reference is an OCI layout on the host that stages it: a directory, or a tar archive of one that is not compressed
    #[arg(long)]
    pub layout: bool,
    /// Which manifest of the layout, where it holds several
    #[arg(long, requires = "layout", value_name = "REF")]
    pub manifest: Option<String>,
    /// The host that shall hold it (else the one with most free disk space)
    #[arg(long)]
    pub host: Option<String>,
    /// Where the name means another image, move it to what the source means now; VMs keep the image they have
    #[arg(long)]
    pub if_newer: bool,
    /// Whether to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

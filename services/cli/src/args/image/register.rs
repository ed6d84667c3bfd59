//! The options of `warren image register`.

use std::path::PathBuf;

use clap::Args;

use crate::args::Waiting;

/// `warren image register`
#[derive(Debug, Args)]
pub struct RegisterArgs {
    /// The name the image gets in this lab
    pub name: String,
    /// An ext4, squashfs or erofs file, a tar archive (plain, gzip, zstd) or a directory, of this machine; host:/PATH of the host
    /// that makes the image; object:BUCKET/NAME in a JetStream object store
    pub source: String,
    /// The host that shall hold it (else the one with most free disk space)
    #[arg(long)]
    pub host: Option<String>,
    /// The kernel its VMs boot, unless they ask for another (see `warren kernel ls`)
    #[arg(long)]
    pub kernel: Option<String>,
    /// Take the name from the image that has it; VMs keep the image they have
    #[arg(long)]
    pub replace: bool,
    /// What is run in VMs made from it, where it has no init; arguments are separated by spaces
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// The entrypoint's arguments, or what is run where there is none; separated by spaces
    #[arg(long, value_name = "COMMAND")]
    pub cmd: Option<String>,
    /// An environment variable of what is run; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// The directory it is run in
    #[arg(long, value_name = "PATH")]
    pub workdir: Option<String>,
    /// The user it is run as
    #[arg(long)]
    pub user: Option<String>,
    /// The configuration of an OCI image as JSON, for all of these; options go before it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Whether to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

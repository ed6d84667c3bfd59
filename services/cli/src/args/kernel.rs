//! `warren kernel`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Waiting;

/// `warren kernel …`
#[derive(Debug, Subcommand)]
pub enum KernelCommand {
    /// Import a kernel from its packages or files; VMs boot it on any host of the lab
    Import(KernelImportArgs),
    /// List kernels
    #[command(visible_alias = "list")]
    Ls,
    /// Show one kernel
    Show {
        /// Name, id or digest, or how one of these two begins
        kernel: String,
    },
    /// Take a name away, and with the last name the kernel, unless VMs or images use it
    #[command(visible_alias = "delete")]
    Rm {
        /// Name, id or digest, or how one of these two begins
        kernel: String,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// Show or set the kernel of VMs that name none and whose image names none
    Default {
        /// The kernel: name, id or digest, or how one of these two begins
        kernel: Option<String>,
        /// Let each host's own kernel be booted again
        #[arg(long, conflicts_with = "kernel")]
        none: bool,
    },
}

/// `warren kernel import`
#[derive(Debug, Args)]
pub struct KernelImportArgs {
    /// The name it gets in this lab
    pub name: String,
    /// Files of one kernel on this machine: its .deb or .rpm packages, a vmlinux or bzImage, its …/lib/modules/<release>, or a directory with a
    /// package's files
    #[arg(required_unless_present = "host_path", conflicts_with = "host_path", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// A file, or a directory with one kernel's files, on the host that imports it, below its WARREN_KERNELS
    #[arg(long, value_name = "PATH")]
    pub host_path: Option<String>,
    /// The host that shall have it first (else the one with most free disk space)
    #[arg(long)]
    pub host: Option<String>,
    /// Take the name from the kernel that has it; VMs and images keep the kernel they have
    #[arg(long)]
    pub replace: bool,
    #[command(flatten)]
    /// Whether to wait.
    pub waiting: Waiting,
}

//! The options of `warren image promote`.

use std::path::PathBuf;

use clap::Args;

use crate::args::Waiting;

/// `warren image promote`
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// The VM: its root disk is copied, while its file systems are frozen or while it is stopped
    pub vm: String,
    /// The name the image gets
    pub name: String,
    /// Take the name from the image that has it
    #[arg(long)]
    pub replace: bool,
    /// Leave in it what makes one machine of it: machine id, ssh host keys, random seed, leases
    #[arg(long)]
    pub keep_identity: bool,
    /// Let the owner of this OpenSSH public key log in as root of every VM of the image (repeatable)
    #[arg(long, value_name = "FILE")]
    pub ssh_key: Vec<PathBuf>,
    /// The kernel its VMs boot, unless they ask for another (see `warren kernel ls`), instead of the one the VM boots; `default`: it names none
    #[arg(long, value_name = "NAME|default")]
    pub kernel: Option<String>,
    /// Whether to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

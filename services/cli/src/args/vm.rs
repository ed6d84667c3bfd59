//! The arguments of `warren vm …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Waiting;

/// `warren vm create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The VM's name: 1 to 63 of a-z, 0-9 and '-'
    pub name: String,
    /// Name or id of an image, or a registry reference, which is pulled first when it is missing
    #[arg(long)]
    pub image: String,
    /// Virtual CPUs
    #[arg(long, default_value_t = contract::vm::default_cpus())]
    pub cpus: u32,
    /// Memory, e.g. 512M
    #[arg(long, default_value_t = contract::vm::default_memory().to_string())]
    pub memory: String,
    /// Disk, e.g. 2G; never smaller than the image
    #[arg(long, default_value_t = contract::vm::default_disk().to_string())]
    pub disk: String,
    /// The host to run on (else the one with most room among those that hold the image)
    #[arg(long)]
    pub host: Option<String>,
    /// OpenSSH public key that may log in over the network; may be repeated [default: ~/.ssh/*.pub if present]
    #[arg(long, value_name = "FILE")]
    pub ssh_key: Vec<PathBuf>,
    /// A label to group it by; may be repeated
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub label: Vec<String>,
    /// What happens when it ends although nobody stopped it: no, on-failure, always
    #[arg(long, default_value = "no")]
    pub restart: String,
    /// Delete it after this time, e.g. 90m, 2h, 7days
    #[arg(long, value_name = "TIME")]
    pub ttl: Option<String>,
    /// Refuse to delete it until this is taken back
    #[arg(long)]
    pub deletion_protection: bool,
    /// Whether to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// `warren vm set`
#[derive(Debug, Args)]
pub struct SetArgs {
    /// Name or id
    pub vm: String,
    /// A new name
    #[arg(long)]
    pub name: Option<String>,
    /// Virtual CPUs
    #[arg(long)]
    pub cpus: Option<u32>,
    /// Memory, e.g. 512M
    #[arg(long)]
    pub memory: Option<String>,
    /// Disk, e.g. 4G; it only grows
    #[arg(long)]
    pub disk: Option<String>,
    /// A label to set; may be repeated
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub label: Vec<String>,
    /// A label to take away; may be repeated
    #[arg(long, value_name = "KEY")]
    pub remove_label: Vec<String>,
    /// What happens when it ends although nobody stopped it: no, on-failure, always
    #[arg(long)]
    pub restart: Option<String>,
    /// Delete it after this time from now, e.g. 90m; `off` takes that back
    #[arg(long, value_name = "TIME")]
    pub ttl: Option<String>,
    /// Whether to refuse to delete it
    #[arg(long, value_name = "on|off", value_parser = ["on", "off"])]
    pub deletion_protection: Option<String>,
    /// Only tell what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Whether to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// `warren vm …`
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Create and start a VM
    Create(CreateArgs),
    /// List VMs
    #[command(visible_alias = "list")]
    Ls {
        /// Only those in this state
        #[arg(long)]
        state: Option<String>,
        /// Only those on this host
        #[arg(long)]
        host: Option<String>,
        /// Only those with these labels, e.g. ci=1,team (a key alone takes any value)
        #[arg(short, long, value_name = "SELECTOR")]
        label: Option<String>,
        /// Only those made from this image
        #[arg(long)]
        image: Option<String>,
    },
    /// Show one VM
    Show {
        /// Name or id
        vm: String,
    },
    /// Start a stopped VM
    Start {
        /// Name or id
        vm: String,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// Stop a VM: its guest powers off
    Stop {
        /// Name or id
        vm: String,
        /// End it at once, without asking the guest
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// Stop and start a VM
    Restart {
        /// Name or id
        vm: String,
        /// End it at once, without asking the guest
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// Change a VM, all or nothing, and tell when each change takes effect
    Set(SetArgs),
    /// Give a VM another name
    Rename {
        /// Name or id
        vm: String,
        /// The new name
        name: String,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// Pause a running VM: it keeps its memory and stands still
    Pause {
        /// Name or id
        vm: String,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// Let a paused VM go on
    Resume {
        /// Name or id
        vm: String,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// Delete a VM with its disk, running or not
    #[command(visible_alias = "delete")]
    Rm {
        /// Name or id
        vm: String,
        /// End it at once, without asking the guest
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// Print a VM's console log
    Logs {
        /// Name or id
        vm: String,
        /// Go on with what is written from now on
        #[arg(short, long)]
        follow: bool,
        /// Only the last so many bytes
        #[arg(long, value_name = "BYTES")]
        tail: Option<u64>,
    },
}

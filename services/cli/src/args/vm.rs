//! The arguments of `warren vm …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Waiting;

/// `warren vm create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The VM's name, 1 to 63 of a-z, 0-9 and '-', or several at once, e.g. web-{1..20}
    #[arg(required_unless_present = "file")]
    pub name: Option<String>,
    /// Take what is not said here from a TOML file: the fields of warren.vm.create
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Name or id of an image, or a registry reference, which is pulled first when it is missing
    #[arg(long, required_unless_present = "file")]
    pub image: Option<String>,
    /// What it is given.
    #[command(flatten)]
    pub size: SizeArgs,
    /// OpenSSH public key that may log in over the network; may be repeated [default: ~/.ssh/*.pub if present]
    #[arg(long, value_name = "FILE")]
    pub ssh_key: Vec<PathBuf>,
    /// What happens when it ends although nobody stopped it: no, on-failure, always [default: no]
    #[arg(long)]
    pub restart: Option<String>,
    /// Delete it after this time, e.g. 90m, 2h, 7days
    #[arg(long, value_name = "TIME")]
    pub ttl: Option<String>,
    /// Stop it once nobody has used it for this time, e.g. 30m
    #[arg(long, value_name = "TIME")]
    pub idle: Option<String>,
    /// What to do to it then instead: stop, delete, pause [default: stop]
    #[arg(long, value_name = "ACTION")]
    pub idle_action: Option<String>,
    /// Refuse to delete it until this is taken back
    #[arg(long)]
    pub deletion_protection: bool,
    /// What it has beside its size.
    #[command(flatten)]
    pub features: FeatureArgs,
    /// Whether to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// What a new VM is given of the lab, and how it is found there.
#[derive(Clone, Debug, Default, Args)]
pub struct SizeArgs {
    /// Virtual CPUs [default: 1]
    #[arg(long)]
    pub cpus: Option<u32>,
    /// Memory, e.g. 512M [default: 256M]
    #[arg(long)]
    pub memory: Option<String>,
    /// Disk, e.g. 4G; never smaller than the image [default: 2G]
    #[arg(long)]
    pub disk: Option<String>,
    /// The host to run on (else the one with most room among those that hold the image)
    #[arg(long)]
    pub host: Option<String>,
    /// A label to group it by; may be repeated
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub label: Vec<String>,
    /// Whom its network reaches: isolated, lab, internet [default: internet]
    #[arg(long)]
    pub network: Option<String>,
}

/// What a VM has beside its size.
#[derive(Debug, Default, Args)]
pub struct FeatureArgs {
    /// An environment variable for the image's program, exec and ssh; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// In place of the image's entrypoint, for images without an init; arguments are separated by spaces
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// In place of the image's command, for images without an init; arguments are separated by spaces
    #[arg(long, value_name = "COMMAND")]
    pub cmd: Option<String>,
    /// The kernel to boot: one of the lab's (`warren kernel ls`), or one that hosts have by that name (else its image's, the lab's default, or
    /// the host's own)
    #[arg(long, value_name = "NAME")]
    pub kernel: Option<String>,
    /// More kernel arguments
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    pub kernel_args: Option<String>,
    /// A script that runs as root at the first boot
    #[arg(long, value_name = "FILE")]
    pub user_data: Option<PathBuf>,
    /// Another disk; may be repeated
    #[arg(long, value_name = "name=NAME,size=SIZE[,mount=PATH][,keep]")]
    pub data_disk: Vec<String>,
    /// A port of the host that leads into the VM; may be repeated
    #[arg(short, long, value_name = "[ADDRESS:]PORT:GUEST[/udp]")]
    pub publish: Vec<String>,
}

/// Which VMs.
#[derive(Clone, Debug, Default, Args)]
pub struct Which {
    /// Names or ids
    #[arg(required_unless_present = "label", conflicts_with = "label")]
    pub vms: Vec<String>,
    /// All with these labels, e.g. ci=1,team (a key alone takes any value)
    #[arg(short, long, value_name = "SELECTOR")]
    pub label: Option<String>,
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
    /// Stop it once nobody has used it for this time from now, e.g. 30m; `off` takes that back
    #[arg(long, value_name = "TIME")]
    pub idle: Option<String>,
    /// What to do to it then: stop, delete, pause
    #[arg(long, value_name = "ACTION")]
    pub idle_action: Option<String>,
    /// Publish these ports, in place of all it has; may be repeated, `off` publishes none
    #[arg(short, long, value_name = "[ADDRESS:]PORT:GUEST[/udp]")]
    pub publish: Vec<String>,
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

/// `warren vm top`
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Only this one, by name or id
    #[arg(conflicts_with_all = ["host", "label"])]
    pub vm: Option<String>,
    /// Only those on this host
    #[arg(long)]
    pub host: Option<String>,
    /// Only those with these labels, e.g. ci=1,team (a key alone takes any value)
    #[arg(short, long, value_name = "SELECTOR")]
    pub label: Option<String>,
    /// By what to sort: cpu, memory, disk, network, name
    #[arg(long, value_name = "BY", default_value = "cpu")]
    pub sort: String,
    /// How often to measure; rates are those since the measurement before
    #[arg(short, long, value_name = "TIME", default_value = "2s")]
    pub delay: String,
    /// End after so many tables; in JSON, after so many measurements
    #[arg(short = 'n', long, value_name = "N")]
    pub iterations: Option<u64>,
    /// End after one table: as -n 1
    #[arg(long, conflicts_with = "iterations")]
    pub once: bool,
}

/// `warren vm postmortem`
#[derive(Debug, Args)]
pub struct PostmortemArgs {
    /// Name or id, also of a VM whose create failed or that is deleted, while its operations are kept
    #[arg(required_unless_present = "operation", conflicts_with = "operation")]
    pub vm: Option<String>,
    /// The VM that this operation was about
    #[arg(long, value_name = "ID")]
    pub operation: Option<String>,
    /// The archive, a .tar.gz; never one that is there [default: postmortem-NAME-TIME.tar.gz]
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// `warren vm …`
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Create and start a VM
    Create(Box<CreateArgs>),
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
        /// Only those of this lab
        #[arg(long)]
        lab: Option<String>,
        /// Only those made from this image
        #[arg(long)]
        image: Option<String>,
    },
    /// What VMs use: processors, memory, disks, network; on a terminal refreshed until q or Ctrl-C
    Top(TopArgs),
    /// Show one VM
    Show {
        /// Name or id
        vm: String,
    },
    /// Start stopped VMs
    Start {
        #[command(flatten)]
        /// Which.
        which: Which,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// Stop VMs: their guests power off
    Stop {
        #[command(flatten)]
        /// Which.
        which: Which,
        /// End it at once, without asking the guest
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// Stop and start VMs
    Restart {
        #[command(flatten)]
        /// Which.
        which: Which,
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
    /// Pause running VMs: they keep their memory and stand still
    Pause {
        #[command(flatten)]
        /// Which.
        which: Which,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// Let paused VMs go on
    Resume {
        #[command(flatten)]
        /// Which.
        which: Which,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// Delete VMs with their disks, running or not
    #[command(visible_alias = "delete")]
    Rm {
        #[command(flatten)]
        /// Which.
        which: Which,
        /// End it at once, without asking the guest
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// Wait until a VM is running, ready, stopped or deleted
    Wait {
        /// Name or id
        vm: String,
        /// For what: running, ready (running and its guest answers), stopped, deleted
        #[arg(long = "for", value_name = "WHAT", default_value = "ready")]
        what: String,
        /// Give up after this time
        #[arg(long, value_name = "TIME", default_value = "10m")]
        timeout: String,
    },
    /// Type into a VM's serial console and see what it says; Ctrl-] leaves it
    Console {
        /// Name or id
        vm: String,
    },
    /// Put all that is known of a VM into one archive, without secrets: what failed, its logs, its host
    Postmortem(PostmortemArgs),
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

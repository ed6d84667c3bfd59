//! The command line: what may be typed, with its help. Values are checked by the commands, so that a bad one is
//! answered with the same error, in the same format, as a service would answer it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use command::CommandArgs;
pub use exec::{ExecArgs, JobCommand, without_exec};
pub use image::ImageCommand;
pub use kernel::{KernelCommand, KernelImportArgs};
pub use lab::LabCommand;
pub use run::{Bring, RunArgs};
pub use vm::{CreateArgs, FeatureArgs, PostmortemArgs, SetArgs, SizeArgs, TopArgs, VmCommand, Which};
pub use workspace::{
    DiffArgs, Dirty, ExportArgs, ExportFormat, PrepareArgs, SyncArgs, TakeArgs, WorkspaceCommand, WorkspacePlace,
};

use crate::{dev::args::DevCommand, output::Format};

mod command;
mod exec;
pub mod image;
mod kernel;
mod lab;
mod run;
mod vm;
mod workspace;

const EXIT_CODES: &str = "\
Exit codes:
   0  done                          6  resource_exhausted
   1  internal                      7  aborted, busy
   2  invalid_argument, usage       8  permission_denied
   3  not_found                     9  unavailable
   4  already_exists               10  deadline_exceeded
   5  failed_precondition          11  cancelled
 130  interrupted with Ctrl-C
`exec` and `ssh` end with the exit code of the command they ran; `ssh` with 255 when it could not connect.

Where the lab is: --nats, else WARREN_NATS_URL, else what a running `warren dev` wrote to
/run/warren/client.toml (or $XDG_RUNTIME_DIR/warren/client.toml when not root).";

/// Boots microVMs from OCI images and gets you into them.
#[derive(Debug, Parser)]
#[command(name = "warren", version, after_help = EXIT_CODES, propagate_version = false, max_term_width = 110)]
pub struct Cli {
    /// How to print what is found: a table for people or JSON for programs (errors too, on standard error)
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// How to reach the lab.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How to reach the lab.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// NATS of the lab, e.g. nats://127.0.0.1:4222
    #[arg(long, global = true, env = "WARREN_NATS_URL", value_name = "URL", hide_env_values = true)]
    pub nats: Option<String>,
    /// Credentials file for NATS, where it asks for one
    #[arg(long, global = true, env = "WARREN_NATS_CREDENTIALS", value_name = "FILE", hide_env_values = true)]
    pub nats_credentials: Option<PathBuf>,
    /// Carry sessions over NATS even where their host is reached directly
    #[arg(long, global = true, env = "WARREN_NO_DIRECT", hide_env_values = true)]
    pub no_direct: bool,
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Images: pull, build, log, push, register, export, import, list, show, tag, rename, remove
    Image {
        #[command(subcommand)]
        /// Which.
        command: ImageCommand,
    },
    /// Kernels: import, list, show, remove, set the default
    Kernel {
        #[command(subcommand)]
        /// Which.
        command: KernelCommand,
    },
    /// VMs: create, list, show, start, stop, restart, remove, logs
    Vm {
        #[command(subcommand)]
        /// Which.
        command: VmCommand,
    },
    /// Run a command in a VM made for it, with a workspace and its changes brought back if asked for
    Run(Box<RunArgs>),
    /// Log in to a VM, or run a command in it, with ssh
    Ssh(SshArgs),
    /// Print a configuration for ssh, so that plain `ssh web.warren`, scp, rsync, VS Code and Ansible find the VMs
    SshConfig(SshConfigArgs),
    /// Copy files into a VM, out of it, or between two
    Cp(CpArgs),
    /// Make ports of VMs reachable on this machine
    PortForward(PortForwardArgs),
    /// Run a command in a VM without ssh and without its network
    Exec(ExecArgs),
    /// Commands that run in a VM whoever started them: list, attach, logs, kill (also as `warren exec ls …`)
    Job {
        #[command(subcommand)]
        /// Which.
        command: JobCommand,
    },
    /// Worktrees in VMs: prepare, export, diff, sync, list, show, remove, log
    #[command(visible_alias = "ws")]
    Workspace {
        #[command(subcommand)]
        /// Which.
        command: WorkspaceCommand,
    },
    /// Operations: list, show, wait, watch, cancel
    Op {
        #[command(subcommand)]
        /// Which.
        command: OpCommand,
    },
    /// Examine the lab and its hosts: what is wrong, what nobody owns, what to do about it
    Doctor(DoctorArgs),
    /// What happened in the lab (in the last hour), or happens
    Events(EventsArgs),
    /// Data disks that outlive their VMs: list, remove
    Disk {
        #[command(subcommand)]
        /// Which.
        command: DiskCommand,
    },
    /// Several VMs that one file names: up, down, list, show
    Lab {
        #[command(subcommand)]
        /// Which.
        command: LabCommand,
    },
    /// The lab's hosts
    Host {
        #[command(subcommand)]
        /// Which.
        command: HostCommand,
    },
    /// A whole lab on this machine
    Dev {
        #[command(subcommand)]
        /// Which.
        command: DevCommand,
    },
    /// Print a completion script, e.g. `warren completions bash > /etc/bash_completion.d/warren`
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version,
    /// Prints a VM's host key for ssh (KnownHostsCommand of `warren ssh-config`)
    #[command(hide = true)]
    KnownHost {
        /// The name ssh knows it by.
        name: String,
    },
    /// Carries ssh's bytes (ProxyCommand of `warren ssh`)
    #[command(hide = true)]
    Proxy {
        /// Name or id of the VM, or its name with the lab's domain.
        vm: String,
    },
}

impl Command {
    /// Whether it runs for long and by itself.
    pub fn is_service(&self) -> bool {
        matches!(self, Self::Dev { command: DevCommand::Supervise(_) })
    }
}

/// Whether to wait for an operation.
#[derive(Clone, Copy, Debug, Args)]
pub struct Waiting {
    /// Print the operation at once instead of waiting for its end
    #[arg(long)]
    pub no_wait: bool,
}

/// `warren ssh`
#[derive(Debug, Args)]
pub struct SshArgs {
    /// Name or id of the VM
    pub vm: String,
    /// The user to log in as
    #[arg(short = 'l', long, default_value = "root")]
    pub user: String,
    /// Another argument for the ssh client, e.g. --ssh-arg=-L8080:localhost:80; may be repeated
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub ssh_arg: Vec<String>,
    /// The command to run instead of a shell
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// `warren ssh-config`
#[derive(Debug, Args)]
pub struct SshConfigArgs {
    /// The user to log in as
    #[arg(short = 'l', long, default_value = "root")]
    pub user: String,
    /// Take names below this domain for VMs
    #[arg(long, default_value = "warren")]
    pub domain: String,
}

/// `warren cp`
#[derive(Debug, Args)]
pub struct CpArgs {
    /// What to copy: a path here, VM:PATH, or - for a tar archive on standard input
    #[arg(allow_hyphen_values = true)]
    pub source: String,
    /// Where to: a path here, VM:PATH, or - for a tar archive on standard output; into it where it is a directory. A source
    /// that ends with /. is copied without its own name
    #[arg(allow_hyphen_values = true)]
    pub target: String,
    /// Copy what symbolic links lead to instead of the links
    #[arg(short = 'L', long)]
    pub follow: bool,
    /// Keep owners (else the files become root's in a VM, and your own here)
    #[arg(short, long)]
    pub archive: bool,
    /// Whose the files become in the VM: a user name or uid[:gid]
    #[arg(long, conflicts_with = "archive")]
    pub owner: Option<String>,
}

/// `warren port-forward`
#[derive(Debug, Args)]
pub struct PortForwardArgs {
    /// Name or id of the VM
    pub vm: String,
    /// Ports: PORT, LOCAL:PORT, ADDRESS:LOCAL:PORT, each of them TCP; LOCAL 0 takes a free one
    #[arg(required = true, value_name = "[[ADDRESS:]LOCAL:]PORT")]
    pub ports: Vec<String>,
    /// Connect to this host as the VM knows it, instead of to the VM itself
    #[arg(long, value_name = "HOST")]
    pub to: Option<String>,
}

/// `warren op …`
#[derive(Debug, Subcommand)]
pub enum OpCommand {
    /// List operations, newest first
    #[command(visible_alias = "list")]
    Ls {
        /// Only those in this state: queued, running, succeeded, failed, cancelled
        #[arg(long)]
        state: Option<String>,
        /// Only those of this kind, e.g. vm.create
        #[arg(long)]
        kind: Option<String>,
        /// Only those on this resource, e.g. vm:<id>
        #[arg(long)]
        resource: Option<String>,
        /// How many at the most (1 to 500)
        #[arg(long, default_value_t = contract::operation::default_limit())]
        limit: u32,
        /// Only those older than this one
        #[arg(long, value_name = "ID")]
        before: Option<String>,
    },
    /// Show one operation with its steps
    Show {
        /// Its id
        id: String,
    },
    /// Wait until an operation has ended; ends with its error's exit code if it failed
    Wait {
        /// Its id
        id: String,
        /// Give up after so many seconds
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u64>,
    },
    /// Print each change of an operation until it has ended (JSON: a line each)
    Watch {
        /// Its id
        id: String,
    },
    /// Cancel an operation: at once while queued, else at its next step
    Cancel {
        /// Its id
        id: String,
    },
    /// Go on with the upload of an `image register`, `image import` or `kernel import` whose process is gone, within ten minutes
    Upload {
        /// Its id
        id: String,
        /// The same files
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

/// `warren events`
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on with what happens from now on
    #[arg(short, long)]
    pub follow: bool,
    /// From so long ago on, e.g. 10m [default: 1h; with --follow: from now on]
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only those of this area: vm, lab, image, host, operation
    #[arg(long)]
    pub area: Option<String>,
}

/// `warren doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Only this host
    #[arg(long)]
    pub host: Option<String>,
    /// Show only what nobody owns: processes, taps, directories, rows without their VM
    #[arg(long)]
    pub leaks: bool,
    /// Remove what nobody owns, then look again
    #[arg(long)]
    pub fix: bool,
    /// The same as `-o json`
    #[arg(long)]
    pub json: bool,
}

/// `warren disk …`
#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// List kept disks
    #[command(visible_alias = "list")]
    Ls,
    /// Delete a kept disk that no VM has, with all that is on it
    #[command(visible_alias = "delete")]
    Rm {
        /// Its name
        disk: String,
    },
}

/// `warren host …`
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// List hosts
    #[command(visible_alias = "list")]
    Ls,
}

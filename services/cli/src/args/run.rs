//! The arguments of `warren run`.

use clap::Args;

const AFTER: &str = "\
The VM is deleted when the command has ended, whatever happens, unless --keep is given. Should this client be killed, the VM is
deleted once nobody has used it for 15 minutes.

  warren run debian -- uname -a
  warren run --timeout 10m --memory 1G debian -- make test

Ctrl-C reaches the command while it runs; before and after it, it ends everything and deletes the VM.
The exit code is the command's, 124 where its --timeout ran out; where it was not reached, that of the error.";

/// `warren run`
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct RunArgs {
    /// Name or id of an image, or a registry reference, which is pulled first when it is missing
    pub image: String,
    /// The VM's name [default: run- and eight random characters]
    #[arg(long)]
    pub name: Option<String>,
    /// Keep the VM
    #[arg(long, conflicts_with = "rm")]
    pub keep: bool,
    /// Delete the VM when the command has ended: the default
    #[arg(long)]
    pub rm: bool,
    /// Virtual CPUs [default: 1]
    #[arg(long)]
    pub cpus: Option<u32>,
    /// Memory, e.g. 512M [default: 256M]
    #[arg(long)]
    pub memory: Option<String>,
    /// Disk, e.g. 4G; never smaller than the image [default: 2G]
    #[arg(long)]
    pub disk: Option<String>,
    /// The host to run on
    #[arg(long)]
    pub host: Option<String>,
    /// A label to group it by; may be repeated
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub label: Vec<String>,
    /// Whom its network reaches: isolated, lab, internet [default: internet]
    #[arg(long)]
    pub network: Option<String>,
    /// Pass standard input on to the command
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// An environment variable of the command; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Working directory of the command
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User name or uid[:gid]; root when left out
    #[arg(short, long)]
    pub user: Option<String>,
    /// End the command after this time with SIGTERM, then SIGKILL, and exit code 124, e.g. 30s or 2h
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<String>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

//! The arguments of `warren dev …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `warren dev …`
#[derive(Debug, Subcommand)]
pub enum DevCommand {
    /// Start a lab, or find that it runs already
    Up(UpArgs),
    /// Show the lab's processes
    Status(StateArgs),
    /// End the lab: its VMs, hosts, services, NATS and PostgreSQL. VMs' disks and the database stay
    Down(DownArgs),
    /// Bring the database schema up to this version
    Migrate {
        /// Which lab.
        #[command(flatten)]
        state: StateArgs,
        /// The database, if it is not that of the lab
        #[arg(long, value_name = "URL", env = "WARREN_DATABASE_URL", hide_env_values = true)]
        database_url: Option<String>,
    },
    /// Runs a lab's processes; started by `up`
    #[command(hide = true)]
    Supervise(StateArgs),
    /// Pushes an image made of one tar to a loopback registry
    #[command(hide = true)]
    PushImage(PushImageArgs),
    /// Writes an OCI layout made of one tar
    #[command(hide = true)]
    OciLayout(OciLayoutArgs),
}

/// Which lab.
#[derive(Clone, Debug, Args)]
pub struct StateArgs {
    /// Where the lab keeps everything
    #[arg(long, value_name = "DIR", default_value = "/var/lib/warren/dev", env = "WARREN_DEV_STATE_DIR")]
    pub state_dir: PathBuf,
}

/// `warren dev up`
#[derive(Clone, Debug, Args)]
pub struct UpArgs {
    /// Which lab.
    #[command(flatten)]
    pub state: StateArgs,
    /// How many host-agents to run, each a host of its own [default: 1, or as before]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub hosts: Option<u8>,
    /// What the first host is called; others get NAME-2, NAME-3, …; two labs on one machine need different names
    /// [default: local, or as before]
    #[arg(long)]
    pub name: Option<String>,
    /// Use this PostgreSQL instead of a private one
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,
    /// Use the NATS named by --nats instead of a private one
    #[arg(long, requires = "nats")]
    pub external_nats: bool,
    /// The guests' kernel (vmlinuz or vmlinux)
    #[arg(long, value_name = "FILE", env = "WARREN_KERNEL")]
    pub kernel: Option<PathBuf>,
    /// The kernel's modules (…/lib/modules/<version>)
    #[arg(long, value_name = "DIR", env = "WARREN_KERNEL_MODULES")]
    pub modules: Option<PathBuf>,
    /// The static guest-agent
    #[arg(long, value_name = "FILE", env = "WARREN_GUEST_AGENT")]
    pub guest_agent: Option<PathBuf>,
}

/// `warren dev down`
#[derive(Clone, Debug, Args)]
pub struct DownArgs {
    /// Which lab.
    #[command(flatten)]
    pub state: StateArgs,
    /// Remove the state directory too: images, disks, database, logs
    #[arg(long)]
    pub purge: bool,
    /// Do not ask before removing
    #[arg(short, long)]
    pub yes: bool,
}

/// `warren dev push-image`
#[derive(Clone, Debug, Args)]
pub struct PushImageArgs {
    /// The root filesystem, an uncompressed tar
    #[arg(long, value_name = "FILE")]
    pub rootfs_tar: PathBuf,
    /// Where to, e.g. 127.0.0.1:5000/debian:12; spoken to over http
    #[arg(long = "ref", value_name = "REF")]
    pub reference: String,
}

/// `warren dev oci-layout`
#[derive(Clone, Debug, Args)]
pub struct OciLayoutArgs {
    /// The root filesystem, an uncompressed tar
    #[arg(long, value_name = "FILE")]
    pub rootfs_tar: PathBuf,
    /// The directory to make
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

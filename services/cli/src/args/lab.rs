//! The arguments of `warren lab …`.

use std::path::PathBuf;

use clap::Subcommand;

use super::Waiting;

/// `warren lab …`
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Bring up what a file says: all its missing VMs, in order, or none
    Up {
        /// The file
        #[arg(short, long, value_name = "FILE", default_value = "lab.toml")]
        file: PathBuf,
        /// Only tell what would be done
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// Delete a lab's VMs in the reverse order; kept disks stay
    Down {
        /// The lab's name
        #[arg(required_unless_present = "file", conflicts_with = "file")]
        lab: Option<String>,
        /// The lab of this file
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Only stop the VMs
        #[arg(long)]
        stop: bool,
        /// End the VMs at once, without asking the guests
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// List labs
    #[command(visible_alias = "list")]
    Ls,
    /// Show a lab's VMs in the order in which they come up
    Show {
        /// The lab's name
        lab: String,
    },
}

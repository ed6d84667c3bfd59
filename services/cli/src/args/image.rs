//! `warren image`.

use clap::Subcommand;

use super::Waiting;

/// `warren image …`
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Pull an image from a registry or an OCI layout directory
    Pull {
        /// A registry reference such as 127.0.0.1:5000/debian:12, or with --layout the path of an OCI layout
        reference: String,
        /// The name it gets in this lab
        #[arg(long)]
        name: String,
        /// The reference is an OCI layout directory on the host that stages it
        #[arg(long)]
        layout: bool,
        /// Which manifest of the layout, where it holds several
        #[arg(long, requires = "layout", value_name = "REF")]
        manifest: Option<String>,
        /// The host that shall hold it (else the one with most free disk space)
        #[arg(long)]
        host: Option<String>,
        /// Where the name means another image, move it to what the source means now; VMs keep the image they have
        #[arg(long)]
        if_newer: bool,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// Push an image to a registry as a bundle: ready to boot, so that who pulls it builds nothing
    Push {
        /// Name or id
        image: String,
        /// The registry reference it gets, such as 127.0.0.1:5000/images/web:1
        reference: String,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// List images
    #[command(visible_alias = "list")]
    Ls {
        /// Also those without a name
        #[arg(long, short)]
        all: bool,
        /// With digests instead of sources
        #[arg(long)]
        digests: bool,
    },
    /// Give an image one more name
    Tag {
        /// Name, id or digest, or how one of these two begins
        image: String,
        /// The name it gets
        name: String,
        /// Take the name from the image that has it
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// Change a name of an image
    Rename {
        /// The name as it is
        from: String,
        /// The name as it is to be
        to: String,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
    /// Show one image
    Show {
        /// Name, id or digest, or how one of these two begins
        image: String,
    },
    /// Take a name away, and with the last name the image; by id or digest, the image with all its names
    #[command(visible_alias = "delete")]
    Rm {
        /// Name, id or digest, or how one of these two begins
        image: String,
        #[command(flatten)]
        /// Whether to wait.
        waiting: Waiting,
    },
}

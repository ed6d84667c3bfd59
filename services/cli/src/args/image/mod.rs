//! `warren image`: one file a verb.

mod build;
mod export;
mod gc;
mod import;
mod kernel;
mod log;
mod ls;
mod promote;
mod pull;
mod push;
mod register;
mod rename;
mod rm;
mod show;
mod tag;

use clap::Subcommand;

pub use build::{BuildArgs, Part, Parts};
pub use export::ExportArgs;
pub use gc::GcArgs;
pub use import::ImportArgs;
pub use kernel::ImageKernelArgs;
pub use log::LogArgs;
pub use ls::LsArgs;
pub use promote::PromoteArgs;
pub use pull::PullArgs;
pub use push::PushArgs;
pub use register::RegisterArgs;
pub use rename::RenameArgs;
pub use rm::RmArgs;
pub use show::ShowArgs;
pub use tag::TagArgs;

/// `warren image …`
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Pull an image from a registry or an OCI layout directory
    Pull(PullArgs),
    /// Push an image to a registry as a bundle: ready to boot, so that who pulls it builds nothing
    Push(PushArgs),
    /// Make an image of a VM: its root disk, mended, made small, and cleaned of what made one machine of it
    Promote(PromoteArgs),
    /// Build an image of another with scripts run in throw-away VMs
    Build(Box<BuildArgs>),
    /// Print what a build printed
    Log(LogArgs),
    /// Make an image of a root filesystem: an ext4, squashfs or erofs file, a tar archive or a directory
    Register(RegisterArgs),
    /// Write an image to a file, from which any lab can import it
    Export(ExportArgs),
    /// Make an image of such a file, or of any OCI archive
    Import(ImportArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Give an image one more name
    Tag(TagArgs),
    /// Change a name of an image
    Rename(RenameArgs),
    /// Remove what nobody owns: stagings of operations that ended, directories without a row, images long without a name.
    /// Replicas whose files are gone are noted, so that a pull brings them back. It is done now and then anyway
    Gc(GcArgs),
    /// Let an image name the kernel that its new VMs boot
    Kernel(ImageKernelArgs),
    /// Show one image
    Show(ShowArgs),
    /// Take a name away, and with the last name the image; by id or digest, the image with all its names
    #[command(visible_alias = "delete")]
    Rm(RmArgs),
}

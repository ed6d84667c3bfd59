//! **Images**: requests to `image-service` and what it says of them. One module a noun.

mod archive;
mod build;
mod config;
mod delete;
mod file;
mod gc;
mod kernel;
mod listing;
mod naming;
mod promote;
mod pull;
mod push;
mod record;
mod register;
mod source;

pub use archive::{ExportRequest, ImportRequest};
pub use build::{
    BUILD_DIR, BuildFiles, BuildLog, BuildLogRequest, BuildRequest, BuildStep, Built, INLINE_MAX, LOG_MAX,
    LOG_PAGE_MAX, LOG_WAIT_MAX_MS, SCRIPT_MAX, SCRIPT_SECONDS, STEPS_MAX, TITLE_MAX, WORK_DIR,
};
pub use config::{CONFIG_MAX, ImageConfig};
pub use delete::DeleteRequest;
pub use file::{FileSource, LABEL_MAX};
pub use gc::{GC_ITEMS_MAX, GcCount, GcHost, GcItem, GcKind, GcOutcome, GcReport, GcRequest};
pub use kernel::SetKernelRequest;
pub use listing::{ImageList, ListRequest};
pub use naming::{RenameRequest, TagRequest};
pub use promote::{PromoteRequest, PromotedKernel};
pub use pull::PullRequest;
pub use push::PushRequest;
pub use record::{Image, ImageRef, PREFIX_MIN};
pub use register::RegisterRequest;
pub use source::ImageSource;

use crate::{deadline, operation::Operation, verb::verbs};

verbs! {
    /// Pulls an image from a registry or an OCI layout. Operation `image.pull`; its result is the image.
    Pull = "warren.image.pull", true, deadline::WAITING, PullRequest => Operation;
    /// Pushes an image to a registry as a bundle. Operation `image.push`; its result has the digests of the bundle and of the image.
    Push = "warren.image.push", true, deadline::WAITING, PushRequest => Operation;
    /// Makes an image of a VM's root disk. Operation `image.promote`; its result has the image, and the names of the VM's disks that are not in it.
    Promote = "warren.image.promote", true, deadline::WAITING, PromoteRequest => Operation;
    /// Builds an image of another by scripts run in throw-away VMs. Operation `image.build`; its result has the image.
    Build = "warren.image.build", true, deadline::WAITING, BuildRequest => Operation;
    /// Reads what a build printed, a piece at a time.
    ReadBuildLog = "warren.image.build_log", false, deadline::BUILD_LOG, BuildLogRequest => BuildLog;
    /// Makes an image of a root filesystem in a file or a directory. Operation `image.register`; its result is the image.
    Register = "warren.image.register", true, deadline::WAITING, RegisterRequest => Operation;
    /// Sends an image as an archive over a byte stream. Operation `image.export`; its result has the digests of the bundle and of the image.
    Export = "warren.image.export", true, deadline::WAITING, ExportRequest => Operation;
    /// Makes an image of an archive. Operation `image.import`; its result is the image.
    Import = "warren.image.import", true, deadline::WAITING, ImportRequest => Operation;
    /// Lists images.
    List = "warren.image.list", false, deadline::QUICK, ListRequest => ImageList;
    /// Shows one image.
    Get = "warren.image.get", false, deadline::QUICK, ImageRef => Image;
    /// Takes a name away; with the last one the image goes, unless VMs use it. Operation `image.delete`.
    Delete = "warren.image.delete", true, deadline::WAITING, DeleteRequest => Operation;
    /// Compares the lab's images with what its hosts have, and mends what can be mended safely.
    Gc = "warren.image.gc", false, deadline::RECONCILE, GcRequest => GcReport;
    /// Gives an image one more name, or moves a name to it. Operation `image.tag`; its result is the image.
    Tag = "warren.image.tag", true, deadline::WAITING, TagRequest => Operation;
    /// Lets an image name another kernel, or none.
    SetKernel = "warren.image.set_kernel", true, deadline::QUICK, SetKernelRequest => Image;
    /// Changes a name of an image. Operation `image.rename`; its result is the image.
    Rename = "warren.image.rename", true, deadline::WAITING, RenameRequest => Operation;
}

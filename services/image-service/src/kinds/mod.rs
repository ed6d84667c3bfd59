//! The **kinds** of operations on images: what each does, step by step, with its undo beside it.
//!
//! Their resource is the image's id, minted with the pull: pulls never wait for each other, while a delete waits for the
//! pull that makes its image. A tag's and a rename's is the name, so that they wait for no push. A build's is the name it is for, and that of one of its steps is what the step is made of.

mod agent;
mod build;
mod collect;
mod delete;
mod export;
mod file;
mod holder;
mod kernel;
mod name;
mod place;
mod promote;
mod publish;
mod pull;
mod push;

use std::sync::Arc;

use contract::{ApiError, ImageId, ImageName};
use operations::EngineBuilder;

pub use build::{Build, BuildOrder, BuildStep};
pub use collect::{Collect, CollectOrder};
pub use delete::{Delete, DeleteOrder, FILES_PATIENCE, remove_once};
pub use export::{Export, ExportOrder};
pub use file::{ArchiveOrder, FromArchive, Register, RegisterOrder};
pub use kernel::{
    Import, ImportOrder, KernelCollect, KernelCollectOrder, KernelDelete, KernelDeleteOrder, KernelPlace,
    KernelPlaceOrder, kernel_remove_once, place_resource, resource as kernel_resource,
};
pub use name::{Rename, RenameOrder, Tag, TagOrder};
pub use place::{Place, Placed};
pub use promote::{Promote, PromoteOrder};
pub use publish::{Made, Makes, Naming, Publish, Turns, host_of};
pub use pull::{Pull, PullOrder};
pub use push::{Push, PushOrder};

/// How many steps of builds one process works on at once when nothing else is said: each holds a VM, for as long as its script runs.
pub const BUILD_STEPS: usize = 32;

/// How many pushes, and how many exports, one process works on at once: each takes as long as its reader likes, and may wait for a kernel
/// that another operation brings.
const SENDINGS: usize = 32;

/// Adds all kinds to an engine; at most `publications` keep a database connection while they wait, and `build_steps` have VMs.
pub fn register(engine: EngineBuilder, publications: usize, build_steps: usize) -> EngineBuilder {
    let turns = Arc::new(Turns::new(publications));
    let promote = Promote::new(turns.clone());
    let (build, step) = (Build::new(turns.clone()), BuildStep::new(turns.clone()));
    let engine = engine.kind(build).kind_apart(step, build_steps);
    let engine = engine
        .kind(Import::new(turns.clone()))
        .kind(KernelPlace::new(turns.clone()))
        .kind(KernelDelete)
        .kind(KernelCollect);
    let (register, import) = (Register::new(turns.clone()), FromArchive::new(turns.clone()));
    let engine = engine.kind(Pull::new(turns)).kind(promote).kind(register).kind(import);
    engine.kind(Delete).kind(Collect).kind_apart(Push, SENDINGS).kind_apart(Export, SENDINGS).kind(Tag).kind(Rename)
}

/// What operations on this image exclude each other by.
pub fn resource(image: ImageId) -> String {
    format!("image:{image}")
}

/// What changes of a name exclude each other by. The name's row lock decides between them and whoever makes or deletes images.
pub fn name_resource(name: &ImageName) -> String {
    format!("image-name:{name}")
}

/// What the loser of a name is told: where the image that has it is from, and the option with which the command moves the name.
pub fn name_taken(name: &ImageName, source: Option<&str>, option: Option<&str>) -> ApiError {
    let from = source.map(|source| format!(" by an image from {source}")).unwrap_or_default();
    let option = option.map(|option| format!(", or move it with `{option}`")).unwrap_or_default();
    ApiError::already_exists(format!("the image name {name} is taken{from}"))
        .hint(format!("choose another name{option}; `warren image rm {name}` takes it away"))
}

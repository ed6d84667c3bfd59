//! The **kinds** of operations on kernels. Their resource is the kernel's id, minted with the import: imports never wait for each other, while
//! a delete waits for what is done with its kernel. Placements on different hosts run beside each other; the kernel's row lock is what
//! keeps them and a delete apart.

mod agent;
pub(super) mod along;
mod collect;
mod delete;
mod import;
mod place;

use contract::{ApiError, ErrorCode, HostId, KernelId, KernelName};

pub use collect::{KernelCollect, KernelCollectOrder};
pub use delete::{KernelDelete, KernelDeleteOrder, kernel_remove_once};
pub use import::{Import, ImportOrder};
pub use place::{KernelPlace, KernelPlaceOrder};

/// What operations on this kernel exclude each other by.
pub fn resource(kernel: KernelId) -> String {
    format!("kernel:{kernel}")
}

/// What placements of this kernel on one host exclude each other by.
pub fn place_resource(kernel: KernelId, host: &HostId) -> String {
    format!("kernel:{kernel}@{host}")
}

/// What the loser of a name is told.
fn name_taken(name: &KernelName) -> ApiError {
    ApiError::already_exists(format!("the kernel name {name} is taken"))
        .hint(format!("choose another name, take it with --replace, or take it away first: `warren kernel rm {name}`"))
}

/// What a worker is told whose kernel was deleted under it.
fn gone(kernel: KernelId) -> ApiError {
    ApiError::not_found(format!("the kernel {kernel} was deleted meanwhile"))
        .hint("`warren kernel ls` lists the kernels")
}

/// Whether a host has nothing staged to publish: an earlier try brought it to the place it would have had, and somebody else was faster to make
/// the kernel the lab's.
fn nothing_left(error: &ApiError) -> bool {
    error.code == ErrorCode::FailedPrecondition
}

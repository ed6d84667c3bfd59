//! A **lab** as its file wants it: which VMs that is, in which order they come up, and what that means for those that are there.

pub mod arrange;
pub mod expand;
pub mod order;
pub mod plan;

use contract::{VmName, vm::CreateRequest};

/// One VM as the lab's file wants it.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// What creates it.
    pub create: CreateRequest,
    /// Those that have to be ready before it is started.
    pub after: Vec<VmName>,
}

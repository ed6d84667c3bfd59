//! Commands with more to them than one call into [`crate::vm`] or [`crate::image`].

pub mod guest;
pub mod workspace;

//! Pure rules: what a source or a build may be, and where a replica goes.

pub mod build;
pub mod comparison;
pub mod file;
pub mod kernel;
pub mod placement;
pub mod reference;
pub mod source;

//! Pure rules: what a source, a reference or a build may be, where a replica goes, and how hosts and rows differ.

pub mod build;
pub mod comparison;
pub mod file;
pub mod kernel;
pub mod placement;
pub mod reference;
pub mod source;

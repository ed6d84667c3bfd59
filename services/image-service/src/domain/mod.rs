//! Pure rules: what a source may be, and where a replica goes.

pub mod placement;
pub mod reference;
pub mod source;

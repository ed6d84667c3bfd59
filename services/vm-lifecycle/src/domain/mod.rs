//! Pure rules: what a VM's state may become, where a VM goes, what a request must be.

pub mod feature;
pub mod lab;
pub mod mac;
pub mod placement;
pub mod plan;
pub mod reference;
pub mod spec;
pub mod state;

//! Operations on **labs**: each waits for one operation a VM, and holds no VM claim while it does.

mod children;
pub mod down;
mod images;
mod reserve;
pub mod up;

pub use down::LabDown;
pub use up::LabUp;

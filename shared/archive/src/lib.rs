//! Trees of files as tar archives (pax, POSIX.1-2001): packed and unpacked in threads, a bounded [`pipe`] apart from the streams
//! that carry them. Guests and people's machines are both ends of the same road, so both use this. A single large file travels in
//! its [`sparse`] form, of which a [`prefix`](prefix) may be there from before.

pub mod pipe;
pub mod prefix;
pub mod program;
pub mod sparse;

mod pack;
mod unpack;

pub use pack::pack;
pub use unpack::{Owner, Place, PlaceError, make_removable};

//! **Trees** of files on their way into a guest as a workspace, and their changes on the way out: the protocol of both ends.
//!
//! A [`Tree`] lists what a directory holds, entry by entry, with the digest of each file's content. [`send`] is the client's end of a
//! prepare and [`receive`] the guest's: the list goes first, only contents the guest lacks follow, and the tree is put in its
//! place when all of it is there. [`export`] is the guest's end of taking changes out and [`read_export`] the client's, which trusts nothing that comes.
//! All of it blocks, over any [`std::io::Read`] and [`std::io::Write`]; [`upload`] and [`download`] carry it over a byte stream in [`contract::frame`]s.

mod blob;
mod content;
mod entry;
mod error;
mod export;
mod files;
mod forget;
mod frames;
mod look;
mod loss;
mod read_export;
mod receive;
mod repo;
mod row;
mod rules;
mod scan;
mod send;
mod site;
mod state;
mod transfer;
mod walk;
mod wire;

pub use blob::{BlobHasher, blob_id};
pub use entry::{Entry, Mtime, Tree, TreeError};
pub use error::{GuestError, ReadError, SendError};
pub use export::export;
pub use forget::forget;
pub use frames::{Download, decline, download, upload};
pub use look::look;
pub use read_export::{Limits, read_export};
pub use receive::receive;
pub use send::{Sent, send};
pub use state::StateDir;
pub use transfer::{Progress, Transfer};
pub use walk::{Walked, walk, walk_at};

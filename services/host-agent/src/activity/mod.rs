//! **Activity**: which VMs are in use, and how long the others are idle ([`contract::idle`] says what that means).
//!
//! Every [`LOOK`] each running VM is looked at from outside ([`Track`]); open sessions and connections are counted where
//! they are made ([`Sessions`]); only a VM that has an idle limit and looks idle is asked who is logged in to its ssh server.
//! What is known is told to vm-lifecycle, which decides, and kept in `activity.json` for the next agent.

mod rounds;
mod saved;
mod sessions;
mod track;

use std::time::Duration;

pub use rounds::run;
pub use sessions::{Session, Sessions};
pub use track::{Look, Track};

/// How often VMs are looked at.
pub const LOOK: Duration = Duration::from_secs(5);
/// Over how long rates are taken. Shorter takes each job of cron's for use, longer forgets small things that happen seldom.
pub const WINDOW: Duration = Duration::from_secs(30);

//! The durable operation engine: slow requests as rows that any worker can claim, continue after a crash, and
//! undo.
//!
//! An operation is claimed with a lease and an epoch, works through the [`Step`]s of its [`Kind`], records each with a
//! typed journal, and ends. A worker that dies is replaced when its lease runs out; the successor continues after the last
//! recorded step. A worker that lost its lease cannot record anything, and its commands to hosts are refused by
//! their epoch.

mod claim;
mod context;
mod engine;
mod fence;
mod kind;
#[cfg(test)]
mod model;
mod record;
mod relay;
mod submit;
mod undo;
mod verbs;
mod worker;

pub use context::Context;
pub use engine::{Engine, EngineBuilder, Submitter};
pub use fence::claim_holds_in_txn;
pub use kind::{Kind, Step, StepError};
pub use record::{get, get_in, list};
pub use submit::{NewOperation, Submitted, cancel, finish_in_txn, release, replay, submit, submit_held};
pub use verbs::{answer, serve_operation_verbs};

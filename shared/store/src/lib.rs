//! PostgreSQL done once: a pool, error classes, migrations and the outbox.
//!
//! Transactions are used plainly: take a [`Client`], begin, work, commit. Nothing but SQL happens inside one.

mod column;
mod error;
pub mod migrations;
pub mod outbox;
mod pool;

pub use column::parsed;
pub use deadpool_postgres::{GenericClient, Transaction};
pub use error::{StoreError, constraint};
pub use pool::{Client, Store, StoreConfig};

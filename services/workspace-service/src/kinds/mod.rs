//! The **kinds** of operations on workspaces: what each does, step by step, with its undo beside it.
//!
//! Their resource is the workspaces of one VM, so prepare, export and remove of one VM follow each other. It is not the VM's own: a
//! stop, restart or delete never waits for them. They find out from the VM's host, or from vm-lifecycle, and end.

mod export;
mod host;
mod journal;
mod prepare;
mod remove;
mod serve;
mod settle;

use std::time::Duration;

use operations::EngineBuilder;

pub use export::{Export, ExportCommand};
pub use host::Ended;
pub use host::Target;
pub use prepare::{Prepare, PrepareCommand};
pub use remove::{Remove, RemoveCommand, unknown};
pub use settle::{asked, outcome};

use crate::{Config, served::Sources};

/// Adds all kinds to an engine.
pub fn register(engine: EngineBuilder, config: &Config) -> EngineBuilder {
    let patience: Duration = config.patience;
    let sources = Sources::new(config.served.clone());
    engine.kind(Prepare { patience, sources }).kind(Export { patience }).kind(Remove { patience })
}

/// What a worker is told whose lease ran out; nobody else ever reads it.
fn claim_lost() -> operations::StepError {
    operations::StepError::retry(contract::ApiError::aborted("another worker has the operation"))
}

//! One file a verb: what a request must be, and its answer.

mod conversation;
mod exec;
mod export;
mod jobs;
mod list;
mod open;
mod prepare;
mod remove;
mod session;
mod workspace;

use std::sync::Arc;

use bus::{Bus, BusError, RequestContext, Service};
use contract::{ApiError, Verb, worktree};
use operations::Submitter;
use store::Store;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// How many commands one process collects at once. Each holds up to half a MiB of output and about as much of
/// its stream's window.
const EXECS_MAX: usize = 256;

/// What handlers work with.
pub struct App {
    /// The bus.
    pub bus: Bus,
    /// The database.
    pub store: Store,
    /// Accepts operations.
    pub submitter: Submitter,
    /// Turns for commands to be collected.
    pub execs: Semaphore,
    /// Cancelled when commands under way are to end because this process does.
    pub stop: CancellationToken,
}

impl App {
    /// With all turns free.
    pub fn new(bus: Bus, store: Store, submitter: Submitter, stop: CancellationToken) -> Self {
        Self { bus, store, submitter, execs: Semaphore::new(EXECS_MAX), stop }
    }
}

/// Serves one verb with a handler that takes the app.
async fn serve<V, F>(
    service: &Service,
    app: &Arc<App>,
    handler: fn(Arc<App>, RequestContext, V::Request) -> F,
) -> Result<(), BusError>
where
    V: Verb,
    F: Future<Output = Result<V::Reply, ApiError>> + Send + 'static,
{
    let app = app.clone();
    service.serve::<V, F>(move |context, request| handler(app.clone(), context, request)).await
}

/// Serves every verb of this service.
///
/// # Errors
/// The bus connection is closed.
pub async fn serve_all(service: &Service, app: &Arc<App>) -> Result<(), BusError> {
    serve::<contract::workspace::Open, _>(service, app, open::handle).await?;
    serve::<contract::workspace::Exec, _>(service, app, exec::handle).await?;
    serve::<contract::workspace::ListJobs, _>(service, app, jobs::list).await?;
    serve::<contract::workspace::KillJob, _>(service, app, jobs::kill).await?;
    serve::<worktree::Prepare, _>(service, app, prepare::handle).await?;
    serve::<worktree::Export, _>(service, app, export::handle).await?;
    serve::<worktree::Remove, _>(service, app, remove::handle).await?;
    serve::<worktree::Get, _>(service, app, workspace::get).await?;
    serve::<worktree::List, _>(service, app, list::handle).await
}

//! One file a verb: what a request must be, and its answer.

mod conversation;
mod exec;
mod open;
mod session;

use std::sync::Arc;

use bus::{Bus, BusError, RequestContext, Service};
use contract::{ApiError, Verb, workspace};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// How many commands one process collects at once. Each holds up to half a MiB of output and about as much of
/// its stream's window.
const EXECS_MAX: usize = 256;

/// What handlers work with.
pub struct App {
    /// The bus.
    pub bus: Bus,
    /// Turns for commands to be collected.
    pub execs: Semaphore,
    /// Cancelled when commands under way are to end because this process does.
    pub stop: CancellationToken,
}

impl App {
    /// With all turns free.
    pub fn new(bus: Bus, stop: CancellationToken) -> Self {
        Self { bus, execs: Semaphore::new(EXECS_MAX), stop }
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
    serve::<workspace::Open, _>(service, app, open::handle).await?;
    serve::<workspace::Exec, _>(service, app, exec::handle).await
}

//! One file a verb: what a request must be, and its answer.

mod build;
mod build_log;
mod delete;
mod export;
mod gc;
mod get;
mod import;
mod kernel;
mod list;
mod promote;
mod pull;
mod push;
mod register;
mod rename;
mod set_kernel;
mod tag;

use std::sync::Arc;

use bus::{BusError, RequestContext, Service};
use contract::{ApiError, Verb, deadline, image, operation::Operation};
use operations::{Kind, Submitter};
use serde::de::DeserializeOwned;
use store::{GenericClient, Store};

use crate::reconciler::Reconciler;

/// What handlers work with.
pub struct App {
    /// The database.
    pub store: Store,
    /// Accepts operations.
    pub submitter: Submitter,
    /// Compares images with hosts.
    pub reconciler: Reconciler,
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
    serve::<image::Pull, _>(service, app, pull::handle).await?;
    serve::<image::Push, _>(service, app, push::handle).await?;
    serve::<image::Promote, _>(service, app, promote::handle).await?;
    serve::<image::Build, _>(service, app, build::handle).await?;
    serve::<image::ReadBuildLog, _>(service, app, build_log::handle).await?;
    serve::<image::Register, _>(service, app, register::handle).await?;
    serve::<image::Export, _>(service, app, export::handle).await?;
    serve::<image::Import, _>(service, app, import::handle).await?;
    serve::<image::List, _>(service, app, list::handle).await?;
    serve::<image::Get, _>(service, app, get::handle).await?;
    serve::<image::Delete, _>(service, app, delete::handle).await?;
    serve::<image::Gc, _>(service, app, gc::handle).await?;
    serve::<image::Tag, _>(service, app, tag::handle).await?;
    serve::<image::Rename, _>(service, app, rename::handle).await?;
    serve::<image::SetKernel, _>(service, app, set_kernel::handle).await?;
    kernel::serve_all(service, app).await
}

/// The answer to a request that was accepted before, which comes first: what its words mean by now does not matter to it.
async fn replayed<K: Kind>(
    app: &App,
    context: &RequestContext,
    wait: bool,
    timeout_ms: u64,
) -> Result<Option<Operation>, ApiError> {
    let client = app.store.client().await?;
    let earlier = operations::replay(&client, K::NAME, context.request_key.as_deref(), &context.body_digest).await?;
    drop(client);
    let Some(id) = earlier else { return Ok(None) };
    let operation = operations::get(&app.store, id).await?;
    operations::answer(&app.submitter, operation, wait, timeout_ms).await.map(Some)
}

/// The reply to a request that was carried out before, of a verb that is done when it is accepted.
async fn settled<T: DeserializeOwned>(
    client: &impl GenericClient,
    kind: &str,
    context: &RequestContext,
) -> Result<Option<T>, ApiError> {
    let earlier = operations::replay(client, kind, context.request_key.as_deref(), &context.body_digest).await?;
    let Some(id) = earlier else { return Ok(None) };
    let operation = operations::get_in(client, id).await?;
    let result = operation.result.unwrap_or_default();
    let read = serde_json::from_value(result);
    read.map(Some).map_err(|error| ApiError::internal(format!("the result of operation {id} cannot be read: {error}")))
}

/// Refuses a `timeout_ms` out of range before an operation is made that nobody would wait for.
fn check_timeout(timeout_ms: u64) -> Result<(), ApiError> {
    if (1..=deadline::WAIT_MAX_MS).contains(&timeout_ms) {
        return Ok(());
    }
    Err(ApiError::invalid_argument(format!("`timeout_ms` cannot be {timeout_ms}"))
        .hint(format!("it is 1 to {}", deadline::WAIT_MAX_MS)))
}

//! `warren.kernel.*`: one file a verb.

mod choose;
mod default;
mod delete;
mod get;
mod import;
mod list;
mod place;

use std::sync::Arc;

use bus::{BusError, Service};
use contract::{ApiError, kernel};

use super::{App, serve};

/// Serves every verb about kernels.
pub(super) async fn serve_all(service: &Service, app: &Arc<App>) -> Result<(), BusError> {
    serve::<kernel::Import, _>(service, app, import::handle).await?;
    serve::<kernel::List, _>(service, app, list::handle).await?;
    serve::<kernel::Get, _>(service, app, get::handle).await?;
    serve::<kernel::Delete, _>(service, app, delete::handle).await?;
    serve::<kernel::SetDefault, _>(service, app, default::handle).await?;
    serve::<kernel::Choose, _>(service, app, choose::handle).await?;
    serve::<kernel::Place, _>(service, app, place::handle).await
}

/// What a caller is told who names a kernel the lab does not have.
pub(super) fn not_found(reference: &str) -> ApiError {
    let shown: String = reference.chars().take(80).collect();
    ApiError::not_found(format!("there is no kernel {shown:?}"))
        .hint("`warren kernel ls` lists the kernels, `warren kernel import` makes one")
}

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
use contract::{ApiError, KernelId, OperationId, kernel};
use operations::{NewOperation, Submitted};
use store::StoreError;

use super::{App, serve};
use crate::db::kernel::lookup::kernel_find;

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

/// Accepts an operation whose image is to name the kernel of that reference. A repeat is answered as the first was, although the kernel is gone by
/// now or its name means another.
pub(super) async fn submit_naming(
    app: &App,
    reference: Option<&str>,
    order: impl FnOnce(Option<KernelId>) -> NewOperation<'static>,
) -> Result<OperationId, ApiError> {
    let mut client = app.store.client().await?;
    let transaction = client.transaction().await.map_err(StoreError::from)?;
    let found = match reference {
        None => Ok(None),
        Some(reference) => kernel_find(&transaction, reference).await.and_then(|found| {
            let found = found.ok_or_else(|| not_found(reference))?;
            Ok(Some(found.kernel.id))
        }),
    };
    let submitted = operations::submit(&transaction, &order(found.as_ref().ok().copied().flatten())).await?;
    if let (Submitted::New(_), Err(error)) = (&submitted, found) {
        // Dropped, the transaction takes the operation back.
        return Err(error);
    }
    transaction.commit().await.map_err(StoreError::committing)?;
    Ok(submitted.id())
}

//! `warren.kernel.delete`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{ApiError, KernelId, OperationId, deadline, kernel::DeleteRequest, operation::Operation};
use operations::{Kind, NewOperation, Submitted, answer};
use serde_json::json;
use store::StoreError;

use super::not_found;
use crate::{
    db::kernel::lookup::kernel_find,
    handlers::{App, check_timeout},
    kinds::{KernelDelete, KernelDeleteOrder, kernel_resource},
};

/// Accepts the delete of the name, or of the kernel that it means now. A replay is answered although the kernel is gone.
pub async fn handle(app: Arc<App>, context: RequestContext, request: DeleteRequest) -> Result<Operation, ApiError> {
    check_timeout(request.timeout_ms)?;
    let mut client = app.store.client().await?;
    let transaction = client.transaction().await.map_err(StoreError::from)?;
    let found = kernel_find(&transaction, &request.kernel).await?;
    let kernel_id = found.as_ref().map_or_else(KernelId::new, |found| found.kernel.id);
    let name = found.as_ref().map(|found| found.kernel.name.clone());
    let only_name = found.as_ref().is_some_and(|found| found.by_name);
    let new = NewOperation {
        id: OperationId::new(),
        kind: KernelDelete::NAME,
        resource: kernel_resource(kernel_id),
        deadline: deadline::LIFECYCLE,
        request: json!(KernelDeleteOrder { kernel_id, name, only_name }),
        request_key: context.request_key,
        request_digest: context.body_digest,
        traceparent: context.traceparent,
    };
    let submitted = operations::submit(&transaction, &new).await?;
    if matches!(submitted, Submitted::New(_)) && found.is_none() {
        // Dropped, the transaction takes the operation back.
        return Err(not_found(&request.kernel));
    }
    transaction.commit().await.map_err(StoreError::committing)?;
    drop(client);
    app.submitter.wake(KernelDelete::NAME).await;
    let operation = operations::get(&app.store, submitted.id()).await?;
    answer(&app.submitter, operation, request.wait, request.timeout_ms).await
}

//! `warren.kernel.import`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{ApiError, KernelId, OperationId, deadline, kernel::ImportRequest, operation::Operation};
use operations::{Kind, NewOperation, answer};
use serde_json::json;
use store::StoreError;

use crate::{
    domain::kernel,
    handlers::{App, check_timeout},
    kinds::{Import, ImportOrder, kernel_resource},
};

/// Accepts an import. Whether the name may be had is seen once it is known what kernel it is: the same digest may have it.
pub async fn handle(app: Arc<App>, context: RequestContext, request: ImportRequest) -> Result<Operation, ApiError> {
    kernel::check(&request.source)?;
    check_timeout(request.timeout_ms)?;
    let (wait, timeout_ms, kernel_id) = (request.wait, request.timeout_ms, KernelId::new());
    let new = NewOperation {
        id: OperationId::new(),
        kind: Import::NAME,
        resource: kernel_resource(kernel_id),
        deadline: deadline::PULL,
        request: json!(ImportOrder { kernel_id, import: request }),
        request_key: context.request_key,
        request_digest: context.body_digest,
        traceparent: context.traceparent,
    };
    let mut client = app.store.client().await?;
    let transaction = client.transaction().await.map_err(StoreError::from)?;
    let submitted = operations::submit(&transaction, &new).await?;
    transaction.commit().await.map_err(StoreError::committing)?;
    drop(client);
    app.submitter.wake(Import::NAME).await;
    let operation = operations::get(&app.store, submitted.id()).await?;
    answer(&app.submitter, operation, wait, timeout_ms).await
}

//! `warren.kernel.place`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{ApiError, OperationId, deadline, kernel::PlaceRequest, operation::Operation};
use operations::{Kind, NewOperation, answer};
use serde_json::json;
use store::StoreError;

use crate::{
    handlers::{App, check_timeout},
    kinds::{KernelPlace, KernelPlaceOrder, place_resource},
};

/// Accepts a placement. Two of one kernel on one host follow each other, and the second finds it there.
pub async fn handle(app: Arc<App>, context: RequestContext, request: PlaceRequest) -> Result<Operation, ApiError> {
    check_timeout(request.timeout_ms)?;
    let new = NewOperation {
        id: OperationId::new(),
        kind: KernelPlace::NAME,
        resource: place_resource(request.kernel, &request.host),
        deadline: deadline::LIFECYCLE,
        request: json!(KernelPlaceOrder { kernel_id: request.kernel, host: request.host.clone() }),
        request_key: context.request_key,
        request_digest: context.body_digest,
        traceparent: context.traceparent,
    };
    let mut client = app.store.client().await?;
    let transaction = client.transaction().await.map_err(StoreError::from)?;
    let submitted = operations::submit(&transaction, &new).await?;
    transaction.commit().await.map_err(StoreError::committing)?;
    drop(client);
    app.submitter.wake(KernelPlace::NAME).await;
    let operation = operations::get(&app.store, submitted.id()).await?;
    answer(&app.submitter, operation, request.wait, request.timeout_ms).await
}

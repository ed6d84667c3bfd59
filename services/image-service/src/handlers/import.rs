//! `warren.image.import`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{ApiError, ImageId, OperationId, deadline, image::ImportRequest, operation::Operation};
use operations::{Kind, NewOperation, answer};
use serde_json::json;
use store::StoreError;

use super::{App, check_timeout};
use crate::{
    domain::file,
    kinds::{ArchiveOrder, FromArchive, resource},
};

/// Accepts an import. Whether the name may be had is seen once it is known which image it is: the same one may have it.
pub async fn handle(app: Arc<App>, context: RequestContext, request: ImportRequest) -> Result<Operation, ApiError> {
    file::check(&request.source)?;
    check_timeout(request.timeout_ms)?;
    let (wait, timeout_ms) = (request.wait, request.timeout_ms);
    let image_id = ImageId::new();
    let new = NewOperation {
        id: OperationId::new(),
        kind: FromArchive::NAME,
        resource: resource(image_id),
        deadline: deadline::PULL,
        request: json!(ArchiveOrder { image_id, import: request }),
        request_key: context.request_key,
        request_digest: context.body_digest,
        traceparent: context.traceparent,
    };
    let mut client = app.store.client().await?;
    let transaction = client.transaction().await.map_err(StoreError::from)?;
    let submitted = operations::submit(&transaction, &new).await?;
    transaction.commit().await.map_err(StoreError::committing)?;
    drop(client);
    app.submitter.wake(FromArchive::NAME).await;
    let operation = operations::get(&app.store, submitted.id()).await?;
    answer(&app.submitter, operation, wait, timeout_ms).await
}

//! `warren.image.delete`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{ApiError, ImageId, OperationId, deadline, image::DeleteRequest, operation::Operation};
use operations::{Kind, NewOperation, Submitted, answer};
use serde_json::json;
use store::StoreError;

use super::{App, check_timeout, get::not_found, replayed};
use crate::{
    db::lookup::image_find,
    kinds::{Delete, DeleteOrder, resource},
};

/// Accepts the delete of the name, or of the image that the name means now: what is pulled to that name later is another image. A replay
/// is answered although the image is gone.
pub async fn handle(app: Arc<App>, context: RequestContext, request: DeleteRequest) -> Result<Operation, ApiError> {
    check_timeout(request.timeout_ms)?;
    if let Some(earlier) = replayed::<Delete>(&app, &context, request.wait, request.timeout_ms).await? {
        return Ok(earlier);
    }
    let mut client = app.store.client().await?;
    let transaction = client.transaction().await.map_err(StoreError::from)?;
    let found = image_find(&transaction, &request.image).await?;
    let image_id = found.as_ref().map_or_else(ImageId::new, |found| found.image.id);
    let name = found.as_ref().map(|found| found.image.name.clone());
    let only_name = found.as_ref().is_some_and(|found| found.by_name);
    let new = NewOperation {
        id: OperationId::new(),
        kind: Delete::NAME,
        resource: resource(image_id),
        // It may wait for a push or an export of the image, and has its own time then.
        deadline: deadline::PULL + deadline::LIFECYCLE,
        request: json!(DeleteOrder { image_id, name, only_name }),
        request_key: context.request_key,
        request_digest: context.body_digest,
        traceparent: context.traceparent,
    };
    let submitted = operations::submit(&transaction, &new).await?;
    if matches!(submitted, Submitted::New(_)) && found.is_none() {
        // Dropped, the transaction takes the operation back.
        return Err(not_found(&request.image));
    }
    transaction.commit().await.map_err(StoreError::committing)?;
    drop(client);
    app.submitter.wake(Delete::NAME).await;
    let operation = operations::get(&app.store, submitted.id()).await?;
    answer(&app.submitter, operation, request.wait, request.timeout_ms).await
}

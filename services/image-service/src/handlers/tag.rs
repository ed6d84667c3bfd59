//! `warren.image.tag`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{ApiError, ImageId, OperationId, deadline, image::TagRequest, operation::Operation};
use operations::{Kind, NewOperation, Submitted, answer};
use serde_json::json;
use store::StoreError;

use super::{App, check_timeout, get::not_found, replayed};
use crate::{
    db::lookup::image_find,
    kinds::{Tag, TagOrder, name_resource},
};

/// Accepts the tag of the image that is meant now. It waits for the transaction of a delete of that image, and
/// then finds it gone; for nobody who only reads the image.
pub async fn handle(app: Arc<App>, context: RequestContext, request: TagRequest) -> Result<Operation, ApiError> {
    check_timeout(request.timeout_ms)?;
    if let Some(earlier) = replayed::<Tag>(&app, &context, request.wait, request.timeout_ms).await? {
        return Ok(earlier);
    }
    let mut client = app.store.client().await?;
    let transaction = client.transaction().await.map_err(StoreError::from)?;
    let found = image_find(&transaction, &request.image).await?;
    let image_id = found.as_ref().map_or_else(ImageId::new, |found| found.image.id);
    let new = NewOperation {
        id: OperationId::new(),
        kind: Tag::NAME,
        resource: name_resource(&request.name),
        deadline: deadline::LIFECYCLE,
        request: json!(TagOrder { image_id, name: request.name.clone(), replace: request.replace }),
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
    app.submitter.wake(Tag::NAME).await;
    let operation = operations::get(&app.store, submitted.id()).await?;
    answer(&app.submitter, operation, request.wait, request.timeout_ms).await
}

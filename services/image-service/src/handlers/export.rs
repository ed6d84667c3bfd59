//! `warren.image.export`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{ApiError, ImageId, OperationId, deadline, image::ExportRequest, operation::Operation};
use operations::{Kind, NewOperation, Submitted, answer};
use serde_json::json;
use store::StoreError;

use super::{App, check_timeout, get::not_found, replayed};
use crate::{
    db::lookup::image_find,
    kinds::{Export, ExportOrder, resource},
};

/// Accepts the export of the image that the name means now. It excludes others on that image, so a delete waits for it. A replay is answered although the
/// image is gone.
pub async fn handle(app: Arc<App>, context: RequestContext, request: ExportRequest) -> Result<Operation, ApiError> {
    check_timeout(request.timeout_ms)?;
    if let Some(earlier) = replayed::<Export>(&app, &context, request.wait, request.timeout_ms).await? {
        return Ok(earlier);
    }
    let (wait, timeout_ms, name) = (request.wait, request.timeout_ms, request.image.clone());
    let mut client = app.store.client().await?;
    let transaction = client.transaction().await.map_err(StoreError::from)?;
    let image = image_find(&transaction, &name).await?.map(|found| found.image);
    let image_id = image.as_ref().map_or_else(ImageId::new, |image| image.id);
    let new = NewOperation {
        id: OperationId::new(),
        kind: Export::NAME,
        resource: resource(image_id),
        deadline: deadline::PULL,
        request: json!(ExportOrder { image_id, export: request }),
        request_key: context.request_key,
        request_digest: context.body_digest,
        traceparent: context.traceparent,
    };
    let submitted = operations::submit(&transaction, &new).await?;
    if matches!(submitted, Submitted::New(_)) && image.is_none() {
        // Dropped, the transaction takes the operation back.
        return Err(not_found(&name));
    }
    transaction.commit().await.map_err(StoreError::committing)?;
    drop(client);
    app.submitter.wake(Export::NAME).await;
    let operation = operations::get(&app.store, submitted.id()).await?;
    answer(&app.submitter, operation, wait, timeout_ms).await
}

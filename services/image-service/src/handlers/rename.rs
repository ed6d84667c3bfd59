//! `warren.image.rename`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{ApiError, ImageId, OperationId, deadline, image::RenameRequest, operation::Operation};
use operations::{Kind, NewOperation, Submitted, answer};
use serde_json::json;
use store::StoreError;

use super::{App, check_timeout, get::not_found, replayed};
use crate::{
    db::image::image_named,
    kinds::{Rename, RenameOrder, name_resource},
};

/// Accepts the change of a name. A replay is answered although the old name is gone.
pub async fn handle(app: Arc<App>, context: RequestContext, request: RenameRequest) -> Result<Operation, ApiError> {
    check_timeout(request.timeout_ms)?;
    if let Some(earlier) = replayed::<Rename>(&app, &context, request.wait, request.timeout_ms).await? {
        return Ok(earlier);
    }
    if request.from == request.to {
        return Err(ApiError::invalid_argument("the new name is the old one"));
    }
    let mut client = app.store.client().await?;
    let transaction = client.transaction().await.map_err(StoreError::from)?;
    let found = image_named(&transaction, &request.from).await?;
    let image_id = found.as_ref().map_or_else(ImageId::new, |image| image.id);
    let new = NewOperation {
        id: OperationId::new(),
        kind: Rename::NAME,
        resource: name_resource(&request.from),
        deadline: deadline::LIFECYCLE,
        request: json!(RenameOrder { image_id, rename: request.clone() }),
        request_key: context.request_key,
        request_digest: context.body_digest,
        traceparent: context.traceparent,
    };
    let submitted = operations::submit(&transaction, &new).await?;
    if matches!(submitted, Submitted::New(_)) && found.is_none() {
        // Dropped, the transaction takes the operation back.
        return Err(not_found(request.from.as_str()));
    }
    transaction.commit().await.map_err(StoreError::committing)?;
    drop(client);
    app.submitter.wake(Rename::NAME).await;
    let operation = operations::get(&app.store, submitted.id()).await?;
    answer(&app.submitter, operation, request.wait, request.timeout_ms).await
}

//! `warren.image.pull`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{ApiError, ImageId, OperationId, deadline, image::PullRequest, operation::Operation};
use operations::{Kind, NewOperation, answer};
use serde_json::json;
use store::StoreError;

use super::{App, check_timeout};
use crate::{
    domain::source,
    kinds::{Pull, PullOrder, resource},
};

/// Accepts a pull. Whether the name may be had is seen once it is known what the source means: the same digest may have it.
pub async fn handle(app: Arc<App>, context: RequestContext, request: PullRequest) -> Result<Operation, ApiError> {
    source::check(&request.source)?;
    check_timeout(request.timeout_ms)?;
    let (wait, timeout_ms) = (request.wait, request.timeout_ms);
    let image_id = ImageId::new();
    let new = NewOperation {
        id: OperationId::new(),
        kind: Pull::NAME,
        // The image's own, so that pulls never wait for each other, whatever their names.
        resource: resource(image_id),
        deadline: deadline::PULL,
        request: json!(PullOrder { image_id, pull: request }),
        request_key: context.request_key,
        request_digest: context.body_digest,
        traceparent: context.traceparent,
    };
    let mut client = app.store.client().await?;
    let transaction = client.transaction().await.map_err(StoreError::from)?;
    let submitted = operations::submit(&transaction, &new).await?;
    transaction.commit().await.map_err(StoreError::committing)?;
    drop(client);
    app.submitter.wake(Pull::NAME).await;
    let operation = operations::get(&app.store, submitted.id()).await?;
    answer(&app.submitter, operation, wait, timeout_ms).await
}

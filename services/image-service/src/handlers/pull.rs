//! `warren.image.pull`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{ApiError, ImageId, OperationId, deadline, image::PullRequest, operation::Operation};
use operations::{Kind, NewOperation, Submitted, answer};
use serde_json::json;
use store::StoreError;

use super::{App, check_timeout};
use crate::{
    db::image::name_holder,
    domain::source,
    kinds::{Pull, PullOrder, name_taken, resource},
};

/// Accepts a pull. A name that is taken now is refused at once; one that is taken meanwhile is found out by the
/// publication. A replay is answered before the name is looked at: its own pull may hold it.
pub async fn handle(app: Arc<App>, context: RequestContext, request: PullRequest) -> Result<Operation, ApiError> {
    source::check(&request.source)?;
    check_timeout(request.timeout_ms)?;
    let (name, wait, timeout_ms) = (request.name.clone(), request.wait, request.timeout_ms);
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
    if matches!(submitted, Submitted::New(_))
        && let Some((_, source)) = name_holder(&transaction, &name).await?
    {
        // Dropped, the transaction takes the operation back.
        return Err(name_taken(&name, Some(&source)));
    }
    transaction.commit().await.map_err(StoreError::committing)?;
    drop(client);
    app.submitter.wake(Pull::NAME).await;
    let operation = operations::get(&app.store, submitted.id()).await?;
    answer(&app.submitter, operation, wait, timeout_ms).await
}

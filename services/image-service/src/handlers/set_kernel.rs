//! `warren.image.set_kernel`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError, ImageId, OperationId, deadline,
    image::{Image, SetKernelRequest},
    subject,
};
use operations::{NewOperation, Submitted};
use serde_json::json;
use store::{StoreError, Transaction, outbox};

use super::{App, get::not_found, kernel, settled};
use crate::db::{
    image::{IMAGE_KERNEL, image_get, image_set_kernel},
    kernel::lookup::kernel_find,
    lookup::image_find,
};

/// What it is called among operations.
const KIND: &str = "image.set_kernel";

/// Lets an image name another kernel, or none: an operation that has ended when it is accepted, so that a repeat of the request is
/// answered and not carried out again.
pub async fn handle(app: Arc<App>, context: RequestContext, request: SetKernelRequest) -> Result<Image, ApiError> {
    let mut client = app.store.client().await?;
    if let Some(earlier) = settled(&client, KIND, &context).await? {
        return Ok(earlier);
    }
    let transaction = client.transaction().await.map_err(StoreError::from)?;
    let image = image_find(&transaction, &request.image).await?.ok_or_else(|| not_found(&request.image))?.image.id;
    let new = NewOperation {
        id: OperationId::new(),
        kind: KIND,
        resource: format!("image-kernel:{image}"),
        deadline: deadline::LIFECYCLE,
        request: json!(request),
        request_key: context.request_key.clone(),
        request_digest: context.body_digest.clone(),
        traceparent: context.traceparent.clone(),
    };
    if let Submitted::Replayed(_) = operations::submit(&transaction, &new).await? {
        // The same request came twice at once.
        let earlier = settled(&transaction, KIND, &context).await?;
        return earlier.ok_or_else(|| ApiError::aborted("the request is being carried out").hint("ask again"));
    }
    set(&transaction, image, &request).await?;
    let image = image_get(&transaction, image).await?.ok_or_else(|| not_found(&request.image))?;
    let event = json!({ "digest": image.digest, "kernel": image.kernel });
    outbox::push(&transaction, &subject::event("image", image.id, "kernel"), &event).await?;
    operations::finish_in_txn(&transaction, new.id, &json!(image)).await?;
    transaction.commit().await.map_err(StoreError::committing)?;
    drop(client);
    app.submitter.wake(KIND).await;
    Ok(image)
}

async fn set(transaction: &Transaction<'_>, image: ImageId, request: &SetKernelRequest) -> Result<(), ApiError> {
    let Some(reference) = &request.kernel else { return Ok(image_set_kernel(transaction, image, None).await?) };
    let found = kernel_find(transaction, reference).await?.ok_or_else(|| kernel::not_found(reference))?;
    match image_set_kernel(transaction, image, Some(found.kernel.id)).await {
        // Deleted between the two statements.
        Err(StoreError::Constraint { name, .. }) if name == IMAGE_KERNEL => Err(kernel::not_found(reference)),
        outcome => Ok(outcome?),
    }
}

//! `warren.kernel.set_default`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError, KernelId, OperationId, deadline,
    kernel::{Choice, SetDefaultRequest},
    subject,
};
use operations::{NewOperation, Submitted};
use serde_json::json;
use store::{StoreError, Transaction, outbox};

use super::not_found;
use crate::{
    db::kernel::{
        choice::{KERNEL_DEFAULT, kernel_set_default},
        lookup::{kernel_find, kernel_get},
    },
    handlers::{App, settled},
};

/// What it is called among operations.
const KIND: &str = "kernel.set_default";

/// Sets the kernel of VMs that name none and whose image names none: an operation that has ended when it is accepted, so that a repeat
/// of the request is answered and not carried out again.
pub async fn handle(app: Arc<App>, context: RequestContext, request: SetDefaultRequest) -> Result<Choice, ApiError> {
    let mut client = app.store.client().await?;
    if let Some(earlier) = settled(&client, KIND, &context).await? {
        return Ok(earlier);
    }
    let transaction = client.transaction().await.map_err(StoreError::from)?;
    let new = NewOperation {
        id: OperationId::new(),
        kind: KIND,
        resource: "kernel-default".to_owned(),
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
    let kernel = set(&transaction, &request).await?;
    let kernel = match kernel {
        None => None,
        Some(id) => kernel_get(&transaction, id).await?,
    };
    let event = json!({ "digest": kernel.as_ref().map(|kernel| &kernel.digest) });
    let which = kernel.as_ref().map_or_else(|| "none".to_owned(), |kernel| kernel.id.to_string());
    outbox::push(&transaction, &subject::event("kernel", which, "default"), &event).await?;
    let choice = Choice { kernel };
    operations::finish_in_txn(&transaction, new.id, &json!(choice)).await?;
    transaction.commit().await.map_err(StoreError::committing)?;
    drop(client);
    app.submitter.wake(KIND).await;
    tracing::info!(kernel.id = ?choice.kernel.as_ref().map(|kernel| kernel.id), "the lab's default kernel is set");
    Ok(choice)
}

async fn set(transaction: &Transaction<'_>, request: &SetDefaultRequest) -> Result<Option<KernelId>, ApiError> {
    let Some(reference) = &request.kernel else {
        kernel_set_default(transaction, None).await?;
        return Ok(None);
    };
    let id = kernel_find(transaction, reference).await?.ok_or_else(|| not_found(reference))?.kernel.id;
    match kernel_set_default(transaction, Some(id)).await {
        // Deleted between the two statements.
        Err(StoreError::Constraint { name, .. }) if name == KERNEL_DEFAULT => Err(not_found(reference)),
        outcome => Ok(outcome.map(|()| Some(id))?),
    }
}

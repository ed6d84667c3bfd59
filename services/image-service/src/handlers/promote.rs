//! `warren.image.promote`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError, ImageId, OperationId, deadline,
    image::{PromoteRequest, PromotedKernel},
    operation::Operation,
    ssh_key,
};
use operations::{Kind, NewOperation, answer};
use serde_json::json;

use super::{App, check_timeout, kernel};
use crate::kinds::{Promote, PromoteOrder, resource};

/// The longest name or id of a VM that is looked for, in bytes.
const VM_MAX: usize = 128;

/// Accepts a promotion. Its resource is the image's, so it holds up nothing the VM is asked for.
pub async fn handle(app: Arc<App>, context: RequestContext, request: PromoteRequest) -> Result<Operation, ApiError> {
    check_timeout(request.timeout_ms)?;
    ssh_key::check(&request.ssh_keys)?;
    if request.vm.is_empty() || request.vm.len() > VM_MAX {
        return Err(ApiError::invalid_argument("`vm` is no name or id of a VM").hint("`warren vm ls` lists them"));
    }
    let (wait, timeout_ms) = (request.wait, request.timeout_ms);
    let image_id = ImageId::new();
    let named = match &request.kernel {
        PromotedKernel::Named(reference) => Some(reference.clone()),
        PromotedKernel::OfVm | PromotedKernel::Default => None,
    };
    let id = kernel::submit_naming(&app, named.as_deref(), |kernel| NewOperation {
        id: OperationId::new(),
        kind: Promote::NAME,
        resource: resource(image_id),
        deadline: deadline::PULL,
        request: json!(PromoteOrder { image_id, promote: request, kernel }),
        request_key: context.request_key,
        request_digest: context.body_digest,
        traceparent: context.traceparent,
    })
    .await?;
    app.submitter.wake(Promote::NAME).await;
    let operation = operations::get(&app.store, id).await?;
    answer(&app.submitter, operation, wait, timeout_ms).await
}

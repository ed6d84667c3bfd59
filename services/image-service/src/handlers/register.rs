//! `warren.image.register`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{ApiError, ImageId, OperationId, deadline, image::RegisterRequest, operation::Operation};
use operations::{Kind, NewOperation, answer};
use serde_json::json;

use super::{App, check_timeout, kernel, replayed};
use crate::{
    domain::file,
    kinds::{Register, RegisterOrder, resource},
};

/// Accepts a registration. Whether the name may be had is seen once it is known which image it is: the same one may have it.
pub async fn handle(app: Arc<App>, context: RequestContext, request: RegisterRequest) -> Result<Operation, ApiError> {
    file::check(&request.source)?;
    file::check_config(&request.config)?;
    check_timeout(request.timeout_ms)?;
    if let Some(earlier) = replayed::<Register>(&app, &context, request.wait, request.timeout_ms).await? {
        return Ok(earlier);
    }
    let (wait, timeout_ms) = (request.wait, request.timeout_ms);
    let image_id = ImageId::new();
    let named = request.kernel.clone();
    let id = kernel::submit_naming(&app, named.as_deref(), |kernel| NewOperation {
        id: OperationId::new(),
        kind: Register::NAME,
        resource: resource(image_id),
        deadline: deadline::PULL,
        request: json!(RegisterOrder { image_id, register: request, kernel }),
        request_key: context.request_key,
        request_digest: context.body_digest,
        traceparent: context.traceparent,
    })
    .await?;
    app.submitter.wake(Register::NAME).await;
    let operation = operations::get(&app.store, id).await?;
    answer(&app.submitter, operation, wait, timeout_ms).await
}

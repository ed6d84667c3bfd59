//! `warren.vm.create`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{ApiError, OperationId, VmId, operation::Operation, vm::CreateRequest};
use operations::{Kind, NewOperation, answer};
use serde_json::json;

use super::App;
use crate::{
    domain::spec,
    kinds::create::{Create, CreateOrder, time_limit},
};

/// Accepts a create: everything that needs no other process is checked here, so that a wrong request makes no
/// operation.
pub async fn handle(app: Arc<App>, context: RequestContext, request: CreateRequest) -> Result<Operation, ApiError> {
    spec::check(&request)?;
    let (wait, timeout_ms) = (request.wait, request.timeout_ms);
    let vm_id = VmId::new();
    let new = NewOperation {
        id: OperationId::new(),
        kind: Create::NAME,
        resource: vm_id.resource(),
        deadline: time_limit(&request.image),
        request: json!(CreateOrder { vm_id, create: request }),
        request_key: context.request_key,
        request_digest: context.body_digest,
        traceparent: context.traceparent,
    };
    let operation = app.submitter.submit(&new).await?;
    answer(&app.submitter, operation, wait, timeout_ms).await
}

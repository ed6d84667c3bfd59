//! `warren.vm.set`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError, OperationId,
    change::{SetReply, SetRequest},
    deadline,
};
use operations::{Kind, NewOperation, answer};
use serde_json::json;
use time::OffsetDateTime;

use super::{App, get::find, lifecycle::earlier};
use crate::{
    domain::{plan, spec},
    kinds::set::{Set, SetOrder},
};

/// Tells what a change means, and accepts the operation that carries it out. What the operation finds when its turn comes
/// decides; the plan says what is true now.
pub async fn handle(app: Arc<App>, context: RequestContext, request: SetRequest) -> Result<SetReply, ApiError> {
    spec::timeout(request.timeout_ms)?;
    let vm = match find(&app, &request.vm).await {
        Ok(row) => row.vm,
        Err(missing) => {
            // A repeat of the request that renamed it is answered like the first.
            let earlier = earlier::<Set>(&app, &context).await?.ok_or(missing)?;
            let operation = answer(&app.submitter, earlier, request.wait, request.timeout_ms).await?;
            return Ok(SetReply { plan: Vec::new(), operation: Some(operation) });
        }
    };
    let wanted = plan::wanted(&vm, &request, OffsetDateTime::now_utc())?;
    let plan = plan::plan(&vm, &wanted);
    if request.dry_run || (plan.is_empty() && vm.operation.is_none() && vm.queued.is_empty()) {
        return Ok(SetReply { plan, operation: None });
    }
    let (wait, timeout_ms) = (request.wait, request.timeout_ms);
    let new = NewOperation {
        id: OperationId::new(),
        kind: Set::NAME,
        resource: vm.id.resource(),
        request: json!(SetOrder { vm_id: vm.id, name: vm.name, change: request }),
        deadline: deadline::LIFECYCLE,
        request_key: context.request_key,
        request_digest: context.body_digest,
        traceparent: context.traceparent,
    };
    let operation = app.submitter.submit(&new).await?;
    let operation = answer(&app.submitter, operation, wait, timeout_ms).await?;
    Ok(SetReply { plan, operation: Some(operation) })
}

//! `warren.vm.start|stop|restart|delete`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{ApiError, OperationId, deadline, operation::Operation, vm::LifecycleRequest};
use operations::{Kind, NewOperation, answer};
use serde_json::json;
use store::StoreError;
use uuid::Uuid;

use super::{App, get::find};
use crate::{
    domain::spec,
    kinds::{Delete, VmOrder, delete::protection},
};

/// Accepts an operation of kind `K` on a VM that exists.
pub async fn handle<K: Kind<Request = VmOrder>>(
    app: Arc<App>,
    context: RequestContext,
    request: LifecycleRequest,
) -> Result<Operation, ApiError> {
    spec::timeout(request.timeout_ms)?;
    let row = match find(&app, &request.vm).await {
        Ok(row) => row,
        Err(missing) => {
            // A repeat of the request that deleted it is answered like the first.
            let earlier = earlier::<K>(&app, &context).await?.ok_or(missing)?;
            return answer(&app.submitter, earlier, request.wait, request.timeout_ms).await;
        }
    };
    let vm = row.vm;
    if K::NAME == Delete::NAME {
        protection(&vm)?;
    }
    let new = NewOperation {
        id: OperationId::new(),
        kind: K::NAME,
        resource: vm.id.resource(),
        request: json!(VmOrder { vm_id: vm.id, name: vm.name, force: request.force, idle_seconds: None }),
        deadline: deadline::LIFECYCLE,
        request_key: context.request_key,
        request_digest: context.body_digest,
        traceparent: context.traceparent,
    };
    let operation = app.submitter.submit(&new).await?;
    answer(&app.submitter, operation, request.wait, request.timeout_ms).await
}

/// The operation accepted with this key and request before, if any.
pub(super) async fn earlier<K: Kind>(app: &App, context: &RequestContext) -> Result<Option<Operation>, ApiError> {
    let Some(key) = &context.request_key else { return Ok(None) };
    let client = app.store.client().await?;
    let statement = client
        .prepare_cached(
            "select id from operations.operation where kind = $1 and request_key = $2 and request_digest = $3",
        )
        .await
        .map_err(StoreError::from)?;
    let row = client.query_opt(&statement, &[&K::NAME, key, &context.body_digest]).await.map_err(StoreError::from)?;
    drop(client);
    match row {
        None => Ok(None),
        Some(row) => operations::get(&app.store, OperationId(row.get::<_, Uuid>(0))).await.map(Some),
    }
}

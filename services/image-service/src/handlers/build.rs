//! `warren.image.build`.

use std::{sync::Arc, time::Duration};

use bus::RequestContext;
use contract::{ApiError, ImageId, OperationId, deadline, image::BuildRequest, operation::Operation};
use operations::{Kind, NewOperation, Submitted, answer};
use serde_json::json;
use store::StoreError;

use super::{App, check_timeout, get::not_found, replayed};
use crate::{
    db::{build_cache::Hit, lookup::image_find},
    domain::build,
    kinds::{Build, BuildOrder},
};

/// Accepts a build from the image that the base means now. A replay is answered although that is gone.
pub async fn handle(app: Arc<App>, context: RequestContext, request: BuildRequest) -> Result<Operation, ApiError> {
    build::check(&request)?;
    check_timeout(request.timeout_ms)?;
    if let Some(earlier) = replayed::<Build>(&app, &context, request.wait, request.timeout_ms).await? {
        return Ok(earlier);
    }
    let (wait, timeout_ms, name) = (request.wait, request.timeout_ms, request.base.clone());
    let mut client = app.store.client().await?;
    let transaction = client.transaction().await.map_err(StoreError::from)?;
    let base = image_find(&transaction, &name).await?.map(|found| found.image);
    let missing = base.is_none();
    let base = base.map_or_else(
        || Hit { image: ImageId::new(), digest: String::new() },
        |image| Hit { image: image.id, digest: image.digest },
    );
    let steps = u32::try_from(request.steps.len()).unwrap_or(u32::MAX);
    let new = NewOperation {
        id: OperationId::new(),
        kind: Build::NAME,
        resource: Build::resource(&request.name),
        deadline: (Duration::from_secs(request.script_seconds) + deadline::BUILD_STEP) * steps,
        request: json!(BuildOrder { base, build: request }),
        request_key: context.request_key,
        request_digest: context.body_digest,
        traceparent: context.traceparent,
    };
    let submitted = operations::submit(&transaction, &new).await?;
    if matches!(submitted, Submitted::New(_)) && missing {
        // Dropped, the transaction takes the operation back.
        return Err(not_found(&name));
    }
    transaction.commit().await.map_err(StoreError::committing)?;
    drop(client);
    app.submitter.wake(Build::NAME).await;
    let operation = operations::get(&app.store, submitted.id()).await?;
    answer(&app.submitter, operation, wait, timeout_ms).await
}

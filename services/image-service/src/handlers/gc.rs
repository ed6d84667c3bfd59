//! `warren.image.gc`.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    image::{GcReport, GcRequest},
};

use super::App;

/// A round of the reconciler, now.
pub async fn handle(app: Arc<App>, _: RequestContext, request: GcRequest) -> Result<GcReport, ApiError> {
    app.reconciler.once(request.dry_run).await
}

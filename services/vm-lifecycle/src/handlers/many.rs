//! `warren.vm.create_many` and `warren.vm.many`: the handlers of single VMs, side by side.

use std::sync::Arc;

use bus::RequestContext;
use contract::{
    ApiError,
    many::{CREATE_MANY_MAX, CreateManyRequest, MANY_MAX, ManyReply, ManyRequest, ManyVerb, OneOfMany},
    operation::Operation,
    vm::{CreateRequest, LifecycleRequest, ListRequest},
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};

use super::{App, create, lifecycle};
use crate::{
    db::vm::vm_list,
    domain::spec,
    kinds::{Delete, Pause, Restart, Resume, Start, Stop},
};

/// How many of one request are accepted at the same time; waiting for their ends is not counted.
const AT_ONCE: usize = 16;

/// Creates several VMs.
pub async fn create(app: Arc<App>, context: RequestContext, request: CreateManyRequest) -> Result<ManyReply, ApiError> {
    spec::timeout(request.timeout_ms)?;
    if request.names.is_empty() || request.names.len() > CREATE_MANY_MAX {
        let message = format!("one request cannot create {} VMs", request.names.len());
        return Err(ApiError::invalid_argument(message).hint(format!("`names` holds 1 to {CREATE_MANY_MAX}")));
    }
    if let Some(field) = ["name", "wait", "timeout_ms"].into_iter().find(|field| request.create.contains_key(*field)) {
        let message = format!("`create` cannot hold `{field}`");
        return Err(ApiError::invalid_argument(message).hint("names, wait and timeout_ms stand beside `create`"));
    }
    let mut creates = Vec::new();
    for name in &request.names {
        let mut fields = request.create.clone();
        fields.extend([
            ("name".to_owned(), json!(name)),
            ("wait".to_owned(), json!(request.wait)),
            ("timeout_ms".to_owned(), json!(request.timeout_ms)),
        ]);
        let create: CreateRequest = serde_json::from_value(Value::Object(fields))
            .map_err(|error| ApiError::invalid_argument(format!("`create`: {error}")))?;
        // What is wrong with one is wrong with all: nothing is created then.
        spec::check(&create)?;
        creates.push(create);
    }
    let run = |one: CreateRequest| {
        let (app, context, name) = (app.clone(), of_many(&context, one.name.as_str()), one.name.to_string());
        async move { result(name, create::handle(app, context, one).await) }
    };
    Ok(all(creates.into_iter().map(run), request.wait).await)
}

/// Does one thing to several VMs.
pub async fn handle(app: Arc<App>, context: RequestContext, request: ManyRequest) -> Result<ManyReply, ApiError> {
    spec::timeout(request.timeout_ms)?;
    let vms = chosen(&app, &request).await?;
    let run = |vm: String| {
        let (app, context) = (app.clone(), of_many(&context, &vm));
        let one = LifecycleRequest {
            vm: vm.clone(),
            force: request.force,
            wait: request.wait,
            timeout_ms: request.timeout_ms,
        };
        let verb = request.verb;
        async move { result(vm, single(verb, app, context, one).await) }
    };
    Ok(all(vms.into_iter().map(run), request.wait).await)
}

async fn single(
    verb: ManyVerb,
    app: Arc<App>,
    context: RequestContext,
    one: LifecycleRequest,
) -> Result<Operation, ApiError> {
    match verb {
        ManyVerb::Start => lifecycle::handle::<Start>(app, context, one).await,
        ManyVerb::Stop => lifecycle::handle::<Stop>(app, context, one).await,
        ManyVerb::Restart => lifecycle::handle::<Restart>(app, context, one).await,
        ManyVerb::Pause => lifecycle::handle::<Pause>(app, context, one).await,
        ManyVerb::Resume => lifecycle::handle::<Resume>(app, context, one).await,
        ManyVerb::Delete => lifecycle::handle::<Delete>(app, context, one).await,
    }
}

async fn chosen(app: &App, request: &ManyRequest) -> Result<Vec<String>, ApiError> {
    let vms = match (&request.label, request.vms.is_empty()) {
        (None, false) => request.vms.clone(),
        (Some(label), true) => {
            let filter = ListRequest { label: Some(label.clone()), ..ListRequest::default() };
            let client = app.store.client().await?;
            let limit = u32::try_from(MANY_MAX).unwrap_or(u32::MAX);
            let rows = vm_list(&client, &app.lab.domain, &filter, limit).await?;
            rows.into_iter().map(|row| row.vm.name.to_string()).collect()
        }
        _ => {
            return Err(
                ApiError::invalid_argument("it is not clear which VMs are meant").hint("give either `vms` or `label`")
            );
        }
    };
    if vms.len() > MANY_MAX {
        let message = format!("one request cannot be about more than {MANY_MAX} VMs");
        return Err(ApiError::invalid_argument(message).hint("choose fewer by another label"));
    }
    Ok(vms)
}

/// The request of one of many: its idempotency key is the whole's and its name.
fn of_many(context: &RequestContext, vm: &str) -> RequestContext {
    let request_key = context.request_key.as_ref().map(|key| format!("{key}/{vm}"));
    RequestContext { request_key, ..context.clone() }
}

fn result(vm: String, outcome: Result<Operation, ApiError>) -> OneOfMany {
    match outcome {
        Ok(operation) => OneOfMany { vm, operation: Some(operation), error: None },
        Err(error) => OneOfMany { vm, operation: None, error: Some(error) },
    }
}

async fn all(futures: impl Iterator<Item: Future<Output = OneOfMany>>, wait: bool) -> ManyReply {
    let at_once = if wait { MANY_MAX } else { AT_ONCE };
    ManyReply { results: stream::iter(futures).buffered(at_once).collect().await }
}

//! Who holds a VM's claim and who waits for it, in words.

use contract::{
    ApiError, ErrorCode, OperationId,
    operation::{Get, Operation, OperationRef},
    vm::Vm,
};
use futures::{StreamExt, TryStreamExt, stream};

use crate::{client::Client, output};

/// How many that wait are described; of the rest the ids are enough.
const DESCRIBED: usize = 20;
/// How many are asked for at once.
const AT_ONCE: usize = 8;

/// A VM's claim.
#[derive(Debug, Default)]
pub struct Claims {
    /// The operation that holds it; empty for none.
    pub holder: String,
    /// Those that wait for it, a line each in their order.
    pub queued: String,
}

/// Of this VM.
///
/// # Errors
/// The service could not answer.
pub async fn of(client: &Client, vm: &Vm) -> Result<Claims, ApiError> {
    let holder = match vm.operation {
        None => String::new(),
        Some(id) => line(client, id).await?,
    };
    let (first, rest) = vm.queued.split_at(vm.queued.len().min(DESCRIBED));
    let lines = stream::iter(first).map(|id| line(client, *id)).buffered(AT_ONCE);
    let mut lines: Vec<String> = lines.try_collect().await?;
    lines.extend(rest.iter().map(ToString::to_string));
    Ok(Claims { holder, queued: lines.join("\n") })
}

async fn line(client: &Client, id: OperationId) -> Result<String, ApiError> {
    match client.ask::<Get>(&OperationRef { id }).await {
        Ok(operation) => Ok(describe(&operation)),
        // It ended and was purged meanwhile.
        Err(error) if error.code == ErrorCode::NotFound => Ok(id.to_string()),
        Err(error) => Err(error),
    }
}

/// `vm.stop for 3s, in power-off (<id>)`, `vm.delete since 3s (<id>)`.
fn describe(operation: &Operation) -> String {
    let (kind, id) = (&operation.kind, operation.id);
    let phase = if operation.phase.is_empty() { String::new() } else { format!(", in {}", operation.phase) };
    match operation.started_at {
        Some(at) => format!("{kind} for {}{phase} ({id})", output::age(at)),
        None => format!("{kind} waits for {} ({id})", output::age(operation.created_at)),
    }
}

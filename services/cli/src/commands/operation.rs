//! `warren op …`

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use contract::{
    ApiError, SessionId, deadline,
    operation::{self, ListRequest, Operation, OperationRef},
};

use super::{operation_id, parse_some};
use crate::{
    args::{Global, OpCommand},
    client::Client,
    failure::{Failure, Outcome, SIGINT_EXIT},
    output::{self, Format},
    upload::{self, Upload},
    wait::{self, Waited},
};

/// Runs a command about operations.
///
/// # Errors
/// What the service answered; of a wait also the operation's own error.
pub async fn run(global: &Global, format: Format, command: OpCommand) -> Result<Outcome, Failure> {
    match command {
        OpCommand::Ls { state, kind, resource, limit, before } => {
            let before = before.as_deref().map(operation_id).transpose()?;
            let request = ListRequest { state: parse_some(state.as_deref())?, kind, resource, limit, before };
            let list = Client::connect(global).await?.ask::<operation::List>(&request).await?;
            match format {
                Format::Json => output::json(&list)?,
                Format::Table => table(&list)?,
            }
            Ok(Outcome::Done)
        }
        OpCommand::Show { id } => {
            let id = operation_id(&id)?;
            let operation = Client::connect(global).await?.ask::<operation::Get>(&OperationRef { id }).await?;
            print(&operation, format)?;
            Ok(Outcome::Done)
        }
        OpCommand::Wait { id, timeout } => {
            let id = operation_id(&id)?;
            let client = Client::connect(global).await?;
            let operation = client.ask::<operation::Get>(&OperationRef { id }).await?;
            let give_up = timeout.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
            match wait::with_progress(&client, operation, format, give_up).await? {
                Waited::Interrupted => Ok(Outcome::Exit(SIGINT_EXIT)),
                Waited::Ended(operation) => {
                    print(&wait::succeeded(*operation)?, format)?;
                    Ok(Outcome::Done)
                }
            }
        }
        OpCommand::Watch { id } => {
            let id = operation_id(&id)?;
            let client = Client::connect(global).await?;
            let operation = client.ask::<operation::Get>(&OperationRef { id }).await?;
            let ended = wait::follow(&client, operation, None, |now| match format {
                Format::Json => output::json_line(now),
                Format::Table => output::text(&format!("{} {}\n", output::clean(&now.kind), wait::describe(now))),
            });
            wait::succeeded(ended.await?)?;
            Ok(Outcome::Done)
        }
        OpCommand::Cancel { id } => {
            let id = operation_id(&id)?;
            let client = Client::connect(global).await?;
            let operation = client.change::<operation::Cancel>(&OperationRef { id }, deadline::QUICK).await?;
            match format {
                Format::Json => output::json(&operation)?,
                Format::Table if operation.state.is_final() => {
                    output::text(&format!("{id} is {}\n", operation.state.as_str()))?;
                }
                Format::Table => output::text(&format!("{id} is being cancelled\n"))?,
            }
            Ok(Outcome::Done)
        }
        OpCommand::Upload { id, files } => upload(global, format, &id, files).await,
    }
}

/// Goes on with what another process began to send.
async fn upload(global: &Global, format: Format, id: &str, files: Vec<PathBuf>) -> Result<Outcome, Failure> {
    let id = operation_id(id)?;
    let client = Client::connect(global).await?;
    let operation = client.ask::<operation::Get>(&OperationRef { id }).await?;
    let session = announced(&operation).filter(|_| !operation.state.is_final()).ok_or_else(|| {
        ApiError::failed_precondition(format!("the operation {id} awaits no upload"))
            .hint("`warren op ls --state running` tells which operations go on")
    })?;
    let upload = match (operation.kind.as_str(), files.as_slice()) {
        ("kernel.import", _) => Upload::of_kernel(files)?,
        (_, [file]) => Upload::of(file)?,
        (kind, _) => return Err(ApiError::invalid_argument(format!("{kind} is sent one file")).into()),
    };
    let ended = async |operation: Operation| print(&operation, format);
    upload::made(&client, operation, Some(upload.resume(session)), format, false, ended).await
}

/// The stream on which an operation was told that its file comes.
fn announced(operation: &Operation) -> Option<SessionId> {
    let source = ["/register/source", "/import/source"].iter().find_map(|at| operation.request.pointer(at))?;
    source.pointer("/upload/session")?.as_str()?.parse().ok()
}

fn table(list: &operation::OperationList) -> Result<(), Failure> {
    let header = ["ID", "KIND", "STATE", "PHASE", "RESOURCE", "TOOK", "AGE"];
    output::table(&header, list.operations.iter().map(row).collect())?;
    if let Some(last) = list.operations.last().filter(|_| list.more) {
        output::note(&format!("there are more: --before {}", last.id));
    }
    Ok(())
}

fn row(operation: &Operation) -> Vec<String> {
    vec![
        operation.id.to_string(),
        operation.kind.clone(),
        operation.state.as_str().to_owned(),
        operation.phase.clone(),
        operation.resource.clone(),
        took(operation),
        output::age(operation.created_at),
    ]
}

fn took(operation: &Operation) -> String {
    let Some((start, end)) = operation.started_at.zip(operation.finished_at) else { return "-".to_owned() };
    format!("{:.1}s", (end - start).as_seconds_f64())
}

fn print(operation: &Operation, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        return output::json(operation);
    }
    let optional = |value: &Option<serde_json::Value>| value.as_ref().map(ToString::to_string).unwrap_or_default();
    let steps = operation.steps.iter().map(|step| format!("{} {} {} ago", step.name, step.state, output::age(step.at)));
    let cancelling = operation.cancel_requested && !operation.state.is_final();
    output::pairs(vec![
        ("id", operation.id.to_string()),
        ("kind", operation.kind.clone()),
        ("resource", operation.resource.clone()),
        ("state", format!("{}{}", operation.state.as_str(), if cancelling { " (cancel asked for)" } else { "" })),
        ("phase", operation.phase.clone()),
        ("waits for", operation.waits_for.map(|id| id.to_string()).unwrap_or_default()),
        ("request", operation.request.to_string()),
        ("result", optional(&operation.result)),
        ("error", operation.error.as_ref().map(|error| format!("{}: {error}", error.code)).unwrap_or_default()),
        ("hint", operation.error.as_ref().and_then(|error| error.hint.clone()).unwrap_or_default()),
        ("steps", steps.collect::<Vec<_>>().join("\n")),
        ("worker", operation.worker.clone().unwrap_or_default()),
        ("epoch", operation.epoch.to_string()),
        ("attempts", operation.attempts.to_string()),
        ("trace", operation.trace_id.clone().unwrap_or_default()),
        ("took", took(operation)),
        ("age", output::age(operation.created_at)),
    ])
}

//! `warren vm set` and `warren vm rename`.

use std::collections::BTreeMap;

use contract::{
    ApiError,
    change::{SetReply, SetRequest},
    deadline,
    feature::PublishedPort,
    label,
    operation::{Operation, VmResult},
    vm,
};

use super::create::seconds;
use crate::{
    args::{Global, SetArgs, Waiting},
    client::Client,
    commands::{parse, parse_some},
    failure::{Failure, Outcome},
    output::{self, Format},
    wait,
};

/// Changes a VM.
///
/// # Errors
/// What the service answered.
pub async fn run(global: &Global, format: Format, args: SetArgs) -> Result<Outcome, Failure> {
    let mut labels = BTreeMap::new();
    for text in &args.label {
        let (key, value) = label::parse(text).map_err(|error| ApiError::invalid_argument(error.to_string()))?;
        labels.insert(key, Some(value));
    }
    for key in &args.remove_label {
        labels.insert(parse(key)?, None);
    }
    let request = SetRequest {
        name: parse_some(args.name.as_deref())?,
        cpus: args.cpus,
        memory: parse_some(args.memory.as_deref())?,
        disk: parse_some(args.disk.as_deref())?,
        labels,
        restart: parse_some(args.restart.as_deref())?,
        ttl_seconds: args.ttl.as_deref().map(ttl).transpose()?,
        idle_seconds: args.idle.as_deref().map(ttl).transpose()?,
        idle_action: parse_some(args.idle_action.as_deref())?,
        deletion_protection: args.deletion_protection.map(|word| word == "on"),
        ports: ports(&args.publish)?,
        dry_run: args.dry_run,
        ..base(args.vm)
    };
    send(global, format, request, args.waiting).await
}

/// Renames a VM.
///
/// # Errors
/// What the service answered.
pub async fn rename(
    global: &Global,
    format: Format,
    vm: String,
    name: &str,
    waiting: Waiting,
) -> Result<Outcome, Failure> {
    let request = SetRequest { name: Some(parse(name)?), ..base(vm) };
    send(global, format, request, waiting).await
}

pub(crate) fn base(vm: String) -> SetRequest {
    SetRequest { vm, timeout_ms: deadline::WAIT_DEFAULT_MS, ..SetRequest::default() }
}

/// All that shall be published; nothing said is nothing changed.
fn ports(texts: &[String]) -> Result<Option<Vec<PublishedPort>>, ApiError> {
    match texts {
        [] => Ok(None),
        [off] if off == "off" => Ok(Some(Vec::new())),
        ports => ports.iter().map(|text| parse(text)).collect::<Result<_, _>>().map(Some),
    }
}

fn ttl(text: &str) -> Result<u64, ApiError> {
    if text == "off" { Ok(0) } else { seconds(text) }
}

async fn send(global: &Global, format: Format, request: SetRequest, waiting: Waiting) -> Result<Outcome, Failure> {
    let client = Client::connect(global).await?;
    let reply = client.change::<vm::Set>(&request, deadline::QUICK).await?;
    if format == Format::Table {
        show(&reply)?;
    }
    match reply.operation.clone() {
        None if format == Format::Json => output::json(&reply)?,
        None => output::note(if reply.plan.is_empty() { "nothing to change" } else { "nothing was changed" }),
        Some(operation) => return wait::settle(&client, operation, format, waiting.no_wait, warn).await,
    }
    Ok(Outcome::Done)
}

/// Says what did not take effect at once.
async fn warn(operation: Operation) -> Result<(), Failure> {
    let result: Option<VmResult> = operation.result.and_then(|result| serde_json::from_value(result).ok());
    for warning in result.map(|result| result.warnings).unwrap_or_default() {
        output::note(&output::clean(&warning));
    }
    Ok(())
}

fn show(reply: &SetReply) -> Result<(), Failure> {
    if reply.plan.is_empty() {
        return Ok(());
    }
    let row = |change: &contract::change::FieldChange| {
        vec![change.field.clone(), change.from.clone(), change.to.clone(), change.effect.as_str().to_owned()]
    };
    output::table(&["FIELD", "FROM", "TO", "EFFECT"], reply.plan.iter().map(row).collect())
}

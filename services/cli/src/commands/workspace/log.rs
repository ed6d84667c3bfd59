//! `warren workspace log`: what was put into a VM's workspaces and taken out, newest first.

use contract::{
    ApiError, VmId,
    operation::{self, ListRequest, Operation},
    vm::{self, VmRef},
};
use serde_json::Value;
use time::format_description::well_known::Rfc3339;

use super::summary;
use crate::{
    args::Global,
    client::Client,
    failure::{Failure, Outcome},
    output::{self, Format},
};

/// Shows a VM's operations on workspaces.
///
/// # Errors
/// What the service answered.
pub async fn run(global: &Global, format: Format, vm: &str, limit: u32) -> Result<Outcome, Failure> {
    let client = Client::connect(global).await?;
    let id = match vm.parse::<VmId>() {
        // Of a VM that is gone its operations are kept for a while.
        Ok(id) => id,
        Err(_) => client.ask::<vm::Get>(&VmRef { vm: vm.to_owned() }).await?.id,
    };
    let resource = Some(format!("workspace:{id}"));
    let request = ListRequest { state: None, kind: None, resource, limit, before: None };
    let list = client.ask::<operation::List>(&request).await?;
    match format {
        Format::Json => output::json(&list)?,
        Format::Table => {
            let header = ["WHEN", "WHAT", "PATH", "FROM", "COMMIT", "FILES", "BYTES", "STATE", "OPERATION"];
            output::table(&header, list.operations.iter().map(row).collect())?;
        }
    }
    Ok(Outcome::Done)
}

fn row(operation: &Operation) -> Vec<String> {
    let what = operation.kind.strip_prefix("workspace.").unwrap_or(&operation.kind);
    let request = &operation.request;
    let asked = &request["prepare"];
    let path = request["path"].as_str().or_else(|| asked["path"].as_str()).unwrap_or_default();
    let about = operation.result.as_ref().map(|result| &result["workspace"]["about"]);
    let about = about.filter(|about| about.is_object()).unwrap_or(&asked["source"]["upload"]["about"]);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let moved = summary(operation);
    let ended = operation.result.is_some();
    let count = |count: String| if ended { count } else { String::new() };
    vec![
        operation.created_at.format(&Rfc3339).unwrap_or_default().chars().take(19).collect(),
        what.to_owned(),
        path.to_owned(),
        text(&about["origin"]),
        text(&about["head"]).chars().take(12).collect(),
        count(moved.moved_files.to_string()),
        count(indicatif::BinaryBytes(moved.moved_bytes).to_string()),
        state(operation),
        operation.id.to_string(),
    ]
}

fn state(operation: &Operation) -> String {
    match &operation.error {
        Some(ApiError { message, .. }) => format!("{}: {message}", operation.state.as_str()),
        None => operation.state.as_str().to_owned(),
    }
}

//! A **postmortem**: what is known of a VM once something went wrong with it, for whoever looks into it later or elsewhere. Secrets
//! are taken out before anything leaves the host or is written to a file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    deadline,
    id::{HostId, VmId},
    verb::verbs,
    vm::VmRef,
};

/// The most bytes of text of one host's evidence, in all: escaped as JSON it fits a NATS message (1 MiB) still.
pub const EVIDENCE_MAX: usize = 400 * 1024;

/// Names the VM a host is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvidenceRequest {
    /// The VM.
    pub vm: VmId,
}

/// One file of evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EvidenceFile {
    /// Its name, without directories.
    pub name: String,
    /// What is in it; of what is too long, the end.
    pub text: String,
}

/// What a host knows of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Evidence {
    /// The files.
    pub files: Vec<EvidenceFile>,
    /// What is not there, and why, a line each.
    pub missing: Vec<String>,
}

/// What a VM's host knows of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EvidenceReply {
    /// The VM.
    pub vm: VmId,
    /// Its host.
    pub host: HostId,
    /// What the host knows; what it does not, or that it does not answer, stands in `missing`.
    #[serde(flatten)]
    pub evidence: Evidence,
}

/// Takes out what nobody else is to read: `user_data`, and the values (never the names) of environment variables, wherever they
/// stand.
pub fn redact(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Object(fields) => {
            for (name, field) in fields {
                match name.as_str() {
                    "user_data" if !field.is_null() => *field = Value::from(REMOVED),
                    "env" => without_values(field),
                    _ => redact(field),
                }
            }
        }
        _ => {}
    }
}

/// What stands in the place of a secret.
const REMOVED: &str = "(removed)";

fn without_values(env: &mut Value) {
    match env {
        Value::Object(variables) => variables.values_mut().for_each(|value| *value = Value::from(REMOVED)),
        Value::Array(lines) => {
            for line in lines {
                let name = line.as_str().and_then(|line| line.split_once('=')).map(|(name, _)| name.to_owned());
                *line = Value::from(name.map_or_else(|| REMOVED.to_owned(), |name| format!("{name}={REMOVED}")));
            }
        }
        Value::Null => {}
        _ => *env = Value::from(REMOVED),
    }
}

verbs! {
    /// Gathers what a VM's host knows of it, without secrets.
    Gather = "warren.vm.evidence", false, deadline::AGENT, VmRef => EvidenceReply;
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_are_taken_out_wherever_they_stand() {
        let mut value = json!({
            "spec": {
                "config": { "env": ["PATH=/bin", "TOKEN=s3cret=x", "odd"] },
                "features": { "env": { "TOKEN": "s3cret" }, "user_data": "#!/bin/sh\ns3cret" },
            },
            "list": [{ "create": { "env": { "A": "s3cret" }, "user_data": null, "name": "web" } }],
            "env": "s3cret",
        });
        redact(&mut value);
        let text = value.to_string();
        assert!(!text.contains("s3cret"), "{text}");
        assert_eq!(value["spec"]["config"]["env"], json!(["PATH=(removed)", "TOKEN=(removed)", "(removed)"]));
        assert_eq!(
            value["list"][0]["create"],
            json!({ "env": { "A": "(removed)" }, "user_data": null, "name": "web" })
        );
    }
}

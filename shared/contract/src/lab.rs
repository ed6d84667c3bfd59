//! **Labs**: VMs that one file names. They are reserved in one transaction, all or nothing, come up in the order the file
//! says, and go in the reverse of it.

use std::{collections::BTreeSet, sync::LazyLock};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::{
    deadline,
    id::OperationId,
    name::{NameError, VmName, dns_label},
    operation::{Operation, default_limit, default_wait_ms},
    verb::verbs,
    vm::{CreateRequest, Vm},
};

/// The most VMs of one lab.
pub const LAB_VMS_MAX: usize = 100;

fn lab_name(text: &str) -> Result<String, NameError> {
    dns_label(text, "lab name")
}

crate::name::name!(
    /// The name of a lab: 1 to 63 of `a-z 0-9 -`, no hyphen at either end.
    LabName,
    lab_name,
    r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
);

/// The fields of `warren.vm.create` that one VM of a lab may have: all but those that stand elsewhere.
pub fn vm_fields() -> &'static BTreeSet<String> {
    static FIELDS: LazyLock<BTreeSet<String>> = LazyLock::new(|| {
        let mut fields = fields_of::<CreateRequest>();
        fields.retain(|field| !["name", "wait", "timeout_ms"].contains(&field.as_str()));
        fields
    });
    &FIELDS
}

/// The fields a VM shows.
pub fn shown_fields() -> &'static BTreeSet<String> {
    static FIELDS: LazyLock<BTreeSet<String>> = LazyLock::new(fields_of::<Vm>);
    &FIELDS
}

fn fields_of<T: JsonSchema>() -> BTreeSet<String> {
    let schema = schemars::schema_for!(T);
    schema.get("properties").and_then(Value::as_object).map(|all| all.keys().cloned().collect()).unwrap_or_default()
}

/// A VM of a lab, or several that differ in their number only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LabVm {
    /// Its name; with `count`, what their names begin with.
    pub name: VmName,
    /// So many of them, named `<name>-1`, `<name>-2`, … (1 to 100).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// The VMs of this lab that have to be ready before it is started: names, or the `name` of several with a `count`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<VmName>,
    /// The fields of `warren.vm.create` but `name`, `wait` and `timeout_ms`.
    #[serde(flatten)]
    pub create: Map<String, Value>,
}

/// Makes a lab what the request says: creates the VMs that are missing, starts those that are off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabUpRequest {
    /// The lab's name.
    pub lab: LabName,
    /// Fields of `warren.vm.create` for every VM that does not say otherwise.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub defaults: Map<String, Value>,
    /// Its VMs (1 to 100).
    pub vms: Vec<LabVm>,
    /// OpenSSH public keys for the new VMs that name none. What others were made with is not compared with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// Only tell what would be done.
    #[serde(default)]
    pub dry_run: bool,
    /// Hold the reply until the lab is up.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// A field in which a VM differs from what its lab's file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LabDifference {
    /// The VM.
    pub vm: VmName,
    /// Which field, e.g. `memory`.
    pub field: String,
    /// What it is; empty for nothing.
    pub from: String,
    /// What the file says; empty for nothing.
    pub to: String,
    /// Whether `warren.vm.set` can change it; anything else takes another VM.
    pub settable: bool,
}

/// What bringing a lab up does, VM by VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LabPlan {
    /// VMs that are created.
    #[serde(default)]
    pub create: Vec<VmName>,
    /// VMs that are there and are started, or resumed.
    #[serde(default)]
    pub start: Vec<VmName>,
    /// VMs that run as they are wanted.
    #[serde(default)]
    pub unchanged: Vec<VmName>,
    /// VMs whose `after` becomes another.
    #[serde(default)]
    pub reordered: Vec<VmName>,
    /// VMs of the lab that the file does not name; they stay as they are.
    #[serde(default)]
    pub extra: Vec<VmName>,
    /// Why it is refused: fields of VMs that are there and would have to change.
    #[serde(default)]
    pub differences: Vec<LabDifference>,
}

impl LabPlan {
    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.create.is_empty() && self.start.is_empty() && self.reordered.is_empty() && self.differences.is_empty()
    }
}

/// What bringing a lab up means, and the operation that does it: none when there is nothing to do, or for a dry run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LabUpReply {
    /// VM by VM, as it was when the request came.
    pub plan: LabPlan,
    /// Operation `vm.lab_up`; its result is the plan as it was carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
}

/// Deletes a lab's VMs, or stops them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabDownRequest {
    /// The lab's name.
    pub lab: LabName,
    /// Stop the VMs and keep them.
    #[serde(default)]
    pub stop: bool,
    /// End their VMMs at once instead of asking the guests to power off.
    #[serde(default)]
    pub force: bool,
    /// Hold the reply until it is done.
    #[serde(default)]
    pub wait: bool,
    /// How long to hold it, in milliseconds.
    #[serde(default = "default_wait_ms")]
    pub timeout_ms: u64,
}

/// What taking a lab down means, and the operation that does it: none when the lab has no VMs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LabDownReply {
    /// The VMs as they go: dependents before what they depend on.
    pub vms: Vec<VmName>,
    /// Operation `vm.lab_down`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
}

/// Lists labs by name.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabListRequest {
    /// How many at the most (1 to 500; 100 when left out).
    #[serde(default = "default_limit")]
    pub limit: u32,
    /// Only names after this one: the last name of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<LabName>,
}

/// A lab in one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LabSummary {
    /// Its name.
    pub lab: LabName,
    /// How many VMs it has.
    pub vms: u32,
    /// How many of them run.
    pub running: u32,
    /// When the first of them was reserved.
    #[serde(with = "time::serde::rfc3339")]
    #[schemars(with = "String")]
    pub created_at: OffsetDateTime,
}

/// A page of labs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LabList {
    /// The page.
    pub labs: Vec<LabSummary>,
    /// Whether there is more: ask again with `after` set to the last name here.
    pub more: bool,
}

/// Names one lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabRef {
    /// Its name.
    pub lab: LabName,
}

/// A VM in its lab.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LabMember {
    /// Its place in the order: 1 for those that wait for nobody, one more than the last it waits for otherwise.
    pub level: u32,
    /// The VMs that have to be ready before it is started.
    #[serde(default)]
    pub after: Vec<VmName>,
    /// The VM, without its `env` and `user_data`.
    pub vm: Vm,
}

/// A lab as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Lab {
    /// Its name.
    pub lab: LabName,
    /// Its VMs in the order in which they come up.
    pub vms: Vec<LabMember>,
    /// The operation on the lab that runs now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
    /// The operations on the lab that wait for it, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queued: Vec<OperationId>,
}

verbs! {
    /// Brings a lab up: reserves all its missing VMs in one transaction and boots them in order, all or nothing. Operation `vm.lab_up`.
    Up = "warren.vm.lab_up", true, deadline::WAITING, LabUpRequest => LabUpReply;
    /// Deletes a lab's VMs in the reverse order, or with `stop` only stops them. Operation `vm.lab_down`.
    Down = "warren.vm.lab_down", true, deadline::WAITING, LabDownRequest => LabDownReply;
    /// Lists labs.
    List = "warren.vm.lab_list", false, deadline::QUICK, LabListRequest => LabList;
    /// Shows one lab with its VMs.
    Get = "warren.vm.lab_get", false, deadline::QUICK, LabRef => Lab;
}

impl LabName {
    /// The name of the operations' resource that excludes two operations on one lab.
    pub fn resource(&self) -> String {
        format!("lab:{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_of_a_lab_may_have_what_a_create_has() {
        let fields = vm_fields();
        for field in
            ["image", "cpus", "memory", "disk", "host", "ports", "disks", "env", "network", "restart", "labels"]
        {
            assert!(fields.contains(field), "{field} in {fields:?}");
        }
        assert!(!fields.contains("name") && !fields.contains("wait"));
    }

    #[test]
    fn a_request_is_read_and_its_own_unknown_fields_are_refused() {
        let text = r#"{"lab":"shop","vms":[{"name":"web","count":3,"after":["db"],"memory":"1G"}]}"#;
        let request: LabUpRequest = serde_json::from_str(text).unwrap();
        assert_eq!((request.vms[0].count, request.vms[0].create.len()), (Some(3), 1));
        assert!(serde_json::from_str::<LabUpRequest>(r#"{"lab":"shop","vms":[],"prune":true}"#).is_err());
        assert!(serde_json::from_str::<LabUpRequest>(r#"{"lab":"../x","vms":[]}"#).is_err());
    }
}

//! What bringing a lab up **means**, VM by VM: created, started, left alone, or refused because it would have to change.

use std::collections::BTreeSet;

use contract::{
    ApiError, LabName, MebiBytes, VmId, VmName,
    lab::{LabDifference, LabPlan, shown_fields, vm_fields},
    vm::{CreateRequest, Vm, VmState},
};
use serde_json::{Map, Value, json};
use time::Duration;

use super::Wanted;

/// A VM that is there: a member of the lab, or one that has a name the lab wants.
#[derive(Clone, Debug)]
pub struct Present {
    /// The VM.
    pub vm: Vm,
    /// What its lab's file asked for, if it has one.
    pub spec: Option<CreateRequest>,
    /// Those it waits for.
    pub after: Vec<VmId>,
    /// The operation that created it is being taken back.
    pub leaving: bool,
}

/// What is done with one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is created.
    Create,
    /// It is started.
    Start(VmId),
    /// It is paused, and goes on.
    Resume(VmId),
    /// It runs.
    Keep(VmId),
}

/// Fields that say where something is taken from, which a VM shows as what it became.
const ASKED: [&str; 3] = ["image", "host", "ssh_keys"];
/// What `warren.vm.set` changes.
const SETTABLE: [&str; 10] = [
    "cpus",
    "memory",
    "disk",
    "labels",
    "restart",
    "ttl_seconds",
    "deletion_protection",
    "ports",
    "idle_seconds",
    "idle_action",
];
/// Fields that a VM shows as its `idle_limit`.
const IDLE: [&str; 2] = ["idle_seconds", "idle_action"];
/// How far a time of expiry may be from what the spec says and still be the spec's.
const TTL_SLACK: Duration = Duration::seconds(5);
/// How much of a value a difference shows, in characters.
const SHOWN_MAX: usize = 60;

/// What is done with each wanted VM, in their order, and the same for people.
///
/// # Errors
/// `already_exists` for names of VMs that are not the lab's; `failed_precondition` for VMs that are not there in full or are going.
pub fn plan(lab: &LabName, wanted: &[Wanted], present: &[Present]) -> Result<(Vec<Action>, LabPlan), ApiError> {
    let (mut actions, mut plan) = (Vec::new(), LabPlan::default());
    let found = |name: &VmName| present.iter().find(|there| there.vm.name == *name);
    let foreign =
        wanted.iter().filter_map(|vm| found(&vm.create.name)).filter(|there| there.vm.lab.as_ref() != Some(lab));
    let foreign: Vec<&Vm> = foreign.map(|there| &there.vm).collect();
    if !foreign.is_empty() {
        return Err(taken(lab, &foreign));
    }
    for vm in wanted {
        let name = vm.create.name.clone();
        let Some(there) = found(&name) else {
            actions.push(Action::Create);
            plan.create.push(name);
            continue;
        };
        plan.differences.extend(differences(there, &vm.create));
        if reordered(there, vm, present) {
            plan.reordered.push(name.clone());
        }
        let action = of_state(there)?;
        match action {
            Action::Keep(_) => plan.unchanged.push(name),
            Action::Create | Action::Start(_) | Action::Resume(_) => plan.start.push(name),
        }
        actions.push(action);
    }
    let names: BTreeSet<&VmName> = wanted.iter().map(|vm| &vm.create.name).collect();
    let members = present.iter().filter(|there| there.vm.lab.as_ref() == Some(lab));
    plan.extra = members.map(|there| there.vm.name.clone()).filter(|name| !names.contains(name)).collect();
    Ok((actions, plan))
}

fn taken(lab: &LabName, foreign: &[&Vm]) -> ApiError {
    let whose = |vm: &&Vm| match &vm.lab {
        Some(other) => format!("{} (of lab {other})", vm.name),
        None => format!("{} (of no lab)", vm.name),
    };
    let names: Vec<_> = foreign.iter().map(whose).collect();
    ApiError::already_exists(format!("VMs with names that lab {lab} wants exist: {}", names.join(", ")))
        .hint("choose other names, or delete those VMs first")
        .details(json!({ "vms": foreign.iter().map(|vm| &vm.name).collect::<Vec<_>>() }))
}

fn of_state(there: &Present) -> Result<Action, ApiError> {
    let vm = &there.vm;
    if there.leaving {
        let message = format!(
            "VM {} is left over from an up that failed, and goes when its host {} can be reached",
            vm.name, vm.host
        );
        return Err(
            ApiError::failed_precondition(message).hint("`warren host ls` shows the hosts; ask again when it is gone")
        );
    }
    match vm.state {
        VmState::Running => Ok(Action::Keep(vm.id)),
        VmState::Paused => Ok(Action::Resume(vm.id)),
        VmState::Stopped | VmState::Failed | VmState::Starting | VmState::Stopping => Ok(Action::Start(vm.id)),
        VmState::Creating => {
            Err(ApiError::failed_precondition(format!("VM {} has not been created completely", vm.name))
                .hint(format!("`warren vm rm {}` removes it; then bring the lab up again", vm.name)))
        }
        VmState::Deleting => {
            Err(ApiError::failed_precondition(format!("VM {} is being deleted", vm.name))
                .hint("ask again when it is gone"))
        }
    }
}

fn reordered(there: &Present, vm: &Wanted, present: &[Present]) -> bool {
    let id = |name: &VmName| present.iter().find(|there| there.vm.name == *name).map(|there| there.vm.id);
    let new: BTreeSet<Option<VmId>> = vm.after.iter().map(id).collect();
    let exists = |id: &&VmId| present.iter().any(|there| there.vm.id == **id);
    let old: BTreeSet<Option<VmId>> = there.after.iter().filter(exists).copied().map(Some).collect();
    new != old
}

/// Refuses a plan by which VMs that are there would have to change.
///
/// # Errors
/// `failed_precondition` with the differences in words and in `details.differences`.
pub fn refuse(lab: &LabName, plan: &LabPlan) -> Result<(), ApiError> {
    if plan.differences.is_empty() {
        return Ok(());
    }
    let one = |it: &LabDifference| {
        format!("{}: `{}` is {} and would be {}", it.vm, it.field, or_none(&it.from), or_none(&it.to))
    };
    let all: Vec<_> = plan.differences.iter().map(one).collect();
    let hint = if plan.differences.iter().all(|difference| difference.settable) {
        format!("`warren vm set` changes them, then bring the lab up again; or `warren lab down {lab}` first")
    } else {
        format!(
            "`warren vm set` changes what can be changed; for the rest delete those VMs, or `warren lab down {lab}`, first"
        )
    };
    Err(ApiError::failed_precondition(format!("VMs of lab {lab} are not as its file says: {}", all.join("; ")))
        .hint(hint)
        .details(json!({ "differences": plan.differences })))
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "not set" } else { text }
}

/// The fields in which a VM is not as wanted. What the VM shows of itself counts; where it shows nothing, what it was made with.
fn differences(there: &Present, wanted: &CreateRequest) -> Vec<LabDifference> {
    let fields = |value: Value| match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    let (mut shown, mut wanted_fields) = (fields(json!(there.vm)), fields(json!(wanted)));
    if let Some(limit) = &there.vm.idle_limit {
        shown.insert("idle_seconds".to_owned(), json!(limit.seconds));
        shown.insert("idle_action".to_owned(), json!(limit.action));
    }
    if wanted.idle_seconds.is_some() {
        wanted_fields.insert("idle_action".to_owned(), json!(wanted.idle_action.unwrap_or_default()));
    }
    let asked = there.spec.as_ref().map(|spec| fields(json!(spec))).unwrap_or_default();
    let shows =
        |key: &String| IDLE.contains(&key.as_str()) || (shown_fields().contains(key) && !ASKED.contains(&key.as_str()));
    let keys: BTreeSet<&String> = wanted_fields.keys().chain(asked.keys()).chain(shown.keys()).collect();
    let keys = keys.into_iter().filter(|key| vm_fields().contains(*key) && *key != "ttl_seconds");
    let mut found: Vec<LabDifference> = keys
        .filter_map(|key| {
            let is = if shows(key) { shown.get(key) } else { asked.get(key) };
            let (is, to) = (is.filter(|value| !empty(value)), wanted_fields.get(key).filter(|value| !empty(value)));
            (is != to).then(|| difference(there, key, text(key, is), text(key, to)))
        })
        .collect();
    if !same_lifetime(there, wanted) {
        let seconds = |ttl: Option<u64>| ttl.map(|ttl| ttl.to_string()).unwrap_or_default();
        let is = there.spec.as_ref().and_then(|spec| spec.ttl_seconds);
        let is = if there.vm.expires_at.is_some() { seconds(is) } else { String::new() };
        found.push(difference(there, "ttl_seconds", is, seconds(wanted.ttl_seconds)));
    }
    found
}

fn difference(there: &Present, field: &str, from: String, to: String) -> LabDifference {
    let (vm, settable) = (there.vm.name.clone(), SETTABLE.contains(&field));
    LabDifference { vm, field: field.to_owned(), from, to, settable }
}

/// Nothing in it is the same as nothing said.
fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// A time that `vm set` gave the VM since counts as the file's.
fn same_lifetime(there: &Present, wanted: &CreateRequest) -> bool {
    let asked = there.spec.as_ref().and_then(|spec| spec.ttl_seconds);
    match (there.vm.expires_at, wanted.ttl_seconds) {
        (None, None) => true,
        (None, Some(_)) | (Some(_), None) => false,
        (Some(at), Some(ttl)) => {
            let age = |ttl: u64| Duration::seconds(i64::try_from(ttl).unwrap_or(i64::MAX));
            let own = asked.is_some_and(|asked| (at - there.vm.created_at - age(asked)).abs() < TTL_SLACK);
            !own || asked == Some(ttl)
        }
    }
}

fn text(key: &str, value: Option<&Value>) -> String {
    let size = |value: &Value| value.as_u64().and_then(|mib| u32::try_from(mib).ok()).map(MebiBytes);
    let text = match value {
        None => String::new(),
        Some(value) if ["memory", "disk"].contains(&key) => {
            size(value).map(|size| size.to_string()).unwrap_or_default()
        }
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    if text.chars().count() <= SHOWN_MAX {
        return text;
    }
    text.chars().take(SHOWN_MAX).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::ErrorCode;

    fn lab(text: &str) -> LabName {
        text.parse().unwrap()
    }

    fn wanted(name: &str, more: Value) -> Wanted {
        let mut create = json!({ "name": name, "image": "debian" });
        create.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Wanted { create: serde_json::from_value(create).unwrap(), after: Vec::new() }
    }

    /// A VM as the create made it, with changes made to it since.
    fn present(of: &Wanted, lab: Option<&str>, state: &str, since: Value) -> Present {
        let mut vm = json!({
            "id": VmId::new(), "name": of.create.name, "state": state, "host": "h1", "host_down": false,
            "image": contract::ImageId::new(), "image_name": "debian", "cpus": of.create.cpus, "memory": of.create.memory,
            "disk": of.create.disk, "address": "10.77.0.2", "mac": "", "fqdn": "", "lab": lab, "labels": of.create.labels,
            "restart": of.create.restart, "deletion_protection": of.create.deletion_protection,
            "created_at": "2026-01-01T00:00:00Z", "ready_at": null,
            "expires_at": of.create.ttl_seconds.map(|_| "2026-01-01T01:00:01Z"),
        });
        let fields = vm.as_object_mut().unwrap();
        fields.extend(json!(of.create.features).as_object().unwrap().clone());
        fields.extend(since.as_object().unwrap().clone());
        Present {
            vm: serde_json::from_value(vm).unwrap(),
            spec: Some(of.create.clone()),
            after: Vec::new(),
            leaving: false,
        }
    }

    #[test]
    fn each_vm_is_created_started_or_left_alone() {
        let all = ["new", "off", "dead", "still", "runs"].map(|name| wanted(name, json!({ "env": { "A": "b" } })));
        let states = ["", "stopped", "failed", "paused", "running"];
        let mut there: Vec<_> = (1..5).map(|n| present(&all[n], Some("shop"), states[n], json!({}))).collect();
        there.push(present(&wanted("old", json!({})), Some("shop"), "running", json!({})));
        let (actions, plan) = plan(&lab("shop"), &all, &there).unwrap();
        let id = |n: usize| there[n].vm.id;
        assert_eq!(
            actions,
            [Action::Create, Action::Start(id(0)), Action::Start(id(1)), Action::Resume(id(2)), Action::Keep(id(3))]
        );
        assert!(plan.differences.is_empty() && plan.reordered.is_empty() && !plan.is_idle(), "{plan:?}");
        assert_eq!((plan.create.len(), plan.start.len(), plan.unchanged.len(), plan.extra.len()), (1, 3, 1, 1));
        refuse(&lab("shop"), &plan).unwrap();
    }

    #[test]
    fn names_of_others_are_refused_all_together() {
        let all = ["a", "b", "c"].map(|name| wanted(name, json!({})));
        let there = [
            present(&all[0], None, "running", json!({})),
            present(&all[1], Some("other"), "running", json!({})),
            present(&all[2], Some("shop"), "running", json!({})),
        ];
        let error = plan(&lab("shop"), &all, &there).unwrap_err();
        assert_eq!(error.code, ErrorCode::AlreadyExists);
        assert!(error.message.ends_with("a (of no lab), b (of lab other)"), "{}", error.message);
        for state in ["creating", "deleting"] {
            let there = [present(&all[0], Some("shop"), state, json!({}))];
            assert_eq!(plan(&lab("shop"), &all, &there).unwrap_err().code, ErrorCode::FailedPrecondition);
        }
    }

    #[test]
    fn a_field_that_would_change_is_named_with_what_can_be_done() {
        let made =
            wanted("web", json!({ "memory": "1G", "env": { "A": "b" }, "ttl_seconds": 3600, "ports": ["80:80"] }));
        let same = |since: Value, now: &Wanted| {
            let there = [present(&made, Some("shop"), "running", since)];
            plan(&lab("shop"), std::slice::from_ref(now), &there).unwrap().1
        };
        assert_eq!(same(json!({}), &made).differences, []);
        let now = |more: Value| {
            let mut fields = json!({ "memory": "1G", "env": { "A": "b" }, "ttl_seconds": 3600, "ports": ["80:80"] });
            fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            wanted("web", fields)
        };
        for (change, field, from, to, settable) in [
            (json!({ "memory": "2G" }), "memory", "1G", "2G", true),
            (json!({ "env": { "A": "c" } }), "env", r#"{"A":"b"}"#, r#"{"A":"c"}"#, false),
            (json!({ "image": "other" }), "image", "debian", "other", false),
            (json!({ "host": "h2" }), "host", "", "h2", false),
            (json!({ "ports": [] }), "ports", r#"["80:80/tcp"]"#, "", true),
            (json!({ "ttl_seconds": 60 }), "ttl_seconds", "3600", "60", true),
            (json!({ "ttl_seconds": null }), "ttl_seconds", "3600", "", true),
            (json!({ "deletion_protection": true, "ttl_seconds": null }), "deletion_protection", "false", "true", true),
        ] {
            let plan = same(json!({}), &now(change.clone()));
            let found = &plan.differences[0];
            assert_eq!((found.field.as_str(), found.from.as_str(), found.to.as_str()), (field, from, to), "{change}");
            assert_eq!(found.settable, settable, "{change}");
            let error = refuse(&lab("shop"), &plan).unwrap_err();
            assert!(error.message.contains(&format!("web: `{field}` is")), "{}", error.message);
            assert!(error.hint.unwrap().contains("warren vm set"));
        }
        // What was set since counts: the file that follows is unchanged, the one that does not is not.
        let since = json!({ "memory": 2048, "ports": [], "expires_at": "2026-01-02T00:00:00Z" });
        let follows = now(json!({ "memory": "2G", "ports": [], "ttl_seconds": 90_000 }));
        assert_eq!(same(since.clone(), &follows).differences, []);
        let fields: Vec<_> = same(since, &made).differences.into_iter().map(|it| it.field).collect();
        assert_eq!(fields, ["memory", "ports"]);
    }
}

//! From a request to VMs: defaults filled in, counts unfolded, each field read, each wrong one named with its place.

use std::collections::BTreeMap;

use contract::{
    ApiError, VmName,
    lab::{LAB_VMS_MAX, LabUpRequest, LabVm, vm_fields},
    vm::CreateRequest,
};
use serde_json::{Map, Value, json};

use super::{Wanted, order};
use crate::domain::spec;

/// Fields whose entries a VM adds to those of the defaults; any other field takes the default's place.
const ADDED: [&str; 2] = ["env", "labels"];

/// The VMs a request asks for, in its order.
///
/// # Errors
/// `invalid_argument` naming the place: an unknown or wrong field, a name given twice, an order that cannot be.
pub fn expand(request: &LabUpRequest) -> Result<Vec<Wanted>, ApiError> {
    known("`defaults`", &request.defaults)?;
    let mut wanted = Vec::new();
    let mut groups: BTreeMap<&VmName, Vec<VmName>> = BTreeMap::new();
    for vm in &request.vms {
        let names = names(vm)?;
        if groups.insert(&vm.name, names.clone()).is_some() {
            return Err(twice(&vm.name));
        }
        if wanted.len() + names.len() > LAB_VMS_MAX || names.is_empty() {
            return Err(number());
        }
        let create = create(&names[0], vm, &request.defaults)?;
        wanted.extend(names.into_iter().map(|name| {
            let create = CreateRequest { name, ..create.clone() };
            Wanted { create, after: vm.after.clone() }
        }));
    }
    if wanted.is_empty() {
        return Err(number());
    }
    let mut all: Vec<&VmName> = wanted.iter().map(|vm| &vm.create.name).collect();
    all.sort();
    if let Some(pair) = all.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(twice(pair[0]));
    }
    for vm in &mut wanted {
        let unfolded = vm.after.iter().flat_map(|name| groups.get(name).cloned().unwrap_or_else(|| vec![name.clone()]));
        let mut after: Vec<VmName> = unfolded.collect();
        after.sort();
        after.dedup();
        vm.after = after;
    }
    order::after(&wanted)?;
    kept_once(&wanted)?;
    Ok(wanted)
}

fn number() -> ApiError {
    ApiError::invalid_argument("a lab cannot have so many VMs, or none").hint(format!("it has 1 to {LAB_VMS_MAX}"))
}

fn twice(name: &VmName) -> ApiError {
    ApiError::invalid_argument(format!("two VMs of the lab would be named {name}"))
        .hint("with `count` the names are <name>-1, <name>-2, …")
}

fn names(vm: &LabVm) -> Result<Vec<VmName>, ApiError> {
    let Some(count) = vm.count else { return Ok(vec![vm.name.clone()]) };
    if count == 0 || count as usize > LAB_VMS_MAX {
        return Err(ApiError::invalid_argument(format!("VM {}: `count` cannot be {count}", vm.name))
            .hint(format!("it is 1 to {LAB_VMS_MAX}")));
    }
    let name = |n: u32| format!("{}-{n}", vm.name).parse::<VmName>();
    (1..=count)
        .map(|n| name(n).map_err(|error| ApiError::invalid_argument(format!("VM {}: `count`: {error}", vm.name))))
        .collect()
}

fn known(place: &str, fields: &Map<String, Value>) -> Result<(), ApiError> {
    let all = vm_fields();
    let Some(unknown) = fields.keys().find(|field| !all.contains(*field)) else { return Ok(()) };
    let shown: String = unknown.chars().take(80).collect();
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    Err(ApiError::invalid_argument(format!("{place}: there is no field {shown:?}"))
        .hint(format!("it is one of {}", all.join(", "))))
}

/// The defaults with what the VM says in their place.
fn merged(defaults: &Map<String, Value>, own: &Map<String, Value>) -> Map<String, Value> {
    let mut fields = defaults.clone();
    for (key, value) in own {
        match (fields.get_mut(key), value) {
            (Some(Value::Object(there)), Value::Object(more)) if ADDED.contains(&key.as_str()) => {
                there.extend(more.clone());
            }
            _ => drop(fields.insert(key.clone(), value.clone())),
        }
    }
    fields
}

fn create(name: &VmName, vm: &LabVm, defaults: &Map<String, Value>) -> Result<CreateRequest, ApiError> {
    let place = format!("VM {}", vm.name);
    known(&place, &vm.create)?;
    let mut fields = merged(defaults, &vm.create);
    if !fields.contains_key("image") {
        return Err(ApiError::invalid_argument(format!("{place}: it has no `image`"))
            .hint("say it, or give all of them one in `defaults`"));
    }
    fields.insert("name".to_owned(), json!(name));
    let create = serde_json::from_value(Value::Object(fields.clone())).map_err(|error| {
        // Which field it was, the error does not say: each is tried alone.
        let alone = |(key, value): (&String, &Value)| {
            let mut one = Map::from_iter([("name".to_owned(), json!(name)), ("image".to_owned(), json!("any"))]);
            one.insert(key.clone(), value.clone());
            let error = serde_json::from_value::<CreateRequest>(Value::Object(one)).err()?;
            Some(ApiError::invalid_argument(format!("{place}: `{key}`: {error}")))
        };
        let found = fields.iter().find_map(alone);
        found.unwrap_or_else(|| ApiError::invalid_argument(format!("{place}: {error}")))
    })?;
    spec::check(&create).map_err(|mut error| {
        error.message = format!("{place}: {}", error.message);
        error
    })?;
    Ok(create)
}

/// A kept disk can be one VM's only.
fn kept_once(wanted: &[Wanted]) -> Result<(), ApiError> {
    let mut owners: BTreeMap<&VmName, &VmName> = BTreeMap::new();
    for vm in wanted {
        for disk in vm.create.features.disks.iter().filter(|disk| disk.keep) {
            if let Some(other) = owners.insert(&disk.name, &vm.create.name) {
                let message = format!("VMs {other} and {} both want the kept disk {}", vm.create.name, disk.name);
                return Err(ApiError::invalid_argument(message).hint("a kept disk is one VM's at a time"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: Value) -> LabUpRequest {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn defaults_are_filled_in_and_counts_unfolded() {
        let wanted = expand(&request(json!({
            "lab": "shop",
            "defaults": { "image": "debian", "memory": "512M", "labels": { "lab": "shop" }, "ports": ["1:1"] },
            "vms": [
                { "name": "db", "memory": "1G", "labels": { "role": "db" }, "ports": [] },
                { "name": "web", "count": 3, "after": ["db"] },
                { "name": "lb", "after": ["web", "web-2", "db"], "image": "other" },
            ],
        })))
        .unwrap();
        let names: Vec<_> = wanted.iter().map(|vm| vm.create.name.as_str()).collect();
        assert_eq!(names, ["db", "web-1", "web-2", "web-3", "lb"]);
        let db = &wanted[0].create;
        assert_eq!((db.memory.0, db.labels.len(), db.features.ports.len(), db.image.as_str()), (1024, 2, 0, "debian"));
        assert_eq!((wanted[1].create.memory.0, wanted[1].create.features.ports.len()), (512, 1));
        let after: Vec<_> = wanted[4].after.iter().map(VmName::as_str).collect();
        assert_eq!((after, wanted[4].create.image.as_str()), (vec!["db", "web-1", "web-2", "web-3"], "other"));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let vm = |more: Value| {
            let mut vm = json!({ "name": "web", "image": "debian" });
            vm.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({ "lab": "shop", "vms": [vm] })
        };
        for (wrong, message) in [
            (vm(json!({ "memroy": "1G" })), "VM web: there is no field \"memroy\""),
            (vm(json!({ "wait": true })), "VM web: there is no field \"wait\""),
            (vm(json!({ "memory": "much" })), "VM web: `memory`: "),
            (vm(json!({ "memory": 1 })), "VM web: a VM cannot have 1M of memory"),
            (vm(json!({ "disks": [{ "name": "w", "size": "1G", "ro": true }] })), "VM web: `disks`: "),
            (vm(json!({ "count": 0 })), "VM web: `count` cannot be 0"),
            (vm(json!({ "count": 101 })), "VM web: `count` cannot be 101"),
            (vm(json!({ "after": ["web"] })), "web → web"),
            (vm(json!({ "after": ["nope"] })), "VM web is to come after nope"),
            (json!({ "lab": "s", "vms": [] }), "so many VMs, or none"),
            (json!({ "lab": "s", "vms": [{ "name": "web" }] }), "VM web: it has no `image`"),
            (json!({ "lab": "s", "defaults": { "after": [] }, "vms": [] }), "`defaults`: there is no field \"after\""),
            (
                json!({ "lab": "s", "defaults": { "image": "i" }, "vms": [{ "name": "a", "count": 1 }, { "name": "a-1" }] }),
                "two VMs of the lab would be named a-1",
            ),
            (
                json!({ "lab": "s", "defaults": { "image": "i" }, "vms": [{ "name": "a", "count": 60 }, { "name": "b", "count": 60 }] }),
                "so many VMs",
            ),
            (
                vm(json!({ "count": 2, "disks": [{ "name": "w", "size": "1G", "keep": true }] })),
                "both want the kept disk w",
            ),
        ] {
            let error = expand(&request(wrong.clone())).unwrap_err();
            assert_eq!(error.code, contract::ErrorCode::InvalidArgument);
            assert!(error.message.contains(message), "{wrong}: {}", error.message);
        }
    }
}

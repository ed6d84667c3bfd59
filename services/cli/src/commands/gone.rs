//! What is **gone** when a delete has ended: a name, or what it meant, and from which hosts not yet.

use contract::operation::Operation;

use crate::output;

/// Tells it by the operation's result; `what` is the noun, `called` what was asked for.
pub(super) fn told(what: &str, called: &str, operation: &Operation) -> String {
    let called = output::clean(called);
    let list = |field: &str| {
        let listed = operation.result.as_ref().and_then(|result| result[field].as_array().cloned()).unwrap_or_default();
        listed.iter().filter_map(|name| name.as_str().map(output::clean)).collect::<Vec<_>>().join(", ")
    };
    let deleted = operation.result.as_ref().is_none_or(|result| result["deleted"] != false);
    match (deleted, list("owed"), list("names")) {
        (true, owed, _) if owed.is_empty() => format!("{what} {called} is gone\n"),
        (true, owed, _) => format!("{what} {called} is gone; its files go when their hosts answer again: {owed}\n"),
        (false, _, names) if names.is_empty() => format!("the name {called} is gone; the {what} has other names\n"),
        (false, _, names) => format!("the name {called} is gone; the {what} has other names: {names}\n"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deleted(result: serde_json::Value) -> Operation {
        serde_json::from_value(json!({
            "id": contract::OperationId::new(), "kind": "image.delete", "resource": "image:a", "state": "succeeded",
            "phase": "done", "request": {}, "result": result, "epoch": 1, "attempts": 1,
            "created_at": "2026-01-01T00:00:00Z",
        }))
        .unwrap()
    }

    #[test]
    fn a_name_an_image_and_what_hosts_owe_are_told_apart() {
        let told = |result| told("image", "web", &deleted(result));
        assert_eq!(told(json!({ "deleted": true, "owed": [] })), "image web is gone\n");
        assert_eq!(
            told(json!({ "deleted": true, "owed": ["h2", "h3"] })),
            "image web is gone; its files go when their hosts answer again: h2, h3\n"
        );
        assert_eq!(
            told(json!({ "deleted": false, "names": ["app", "base"], "owed": [] })),
            "the name web is gone; the image has other names: app, base\n"
        );
        // A service of the month before says neither which names.
        assert_eq!(told(json!({ "deleted": false, "owed": [] })), "the name web is gone; the image has other names\n");
    }
}

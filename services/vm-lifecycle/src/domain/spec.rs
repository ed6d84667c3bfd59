//! What a **create** must be before anything is written down: ranges, keys and names, each refused with its own sentence.

use contract::{
    ApiError, MebiBytes,
    deadline::WAIT_MAX_MS,
    idle::{IDLE_SECONDS, IdleAction, IdleLimit},
    label::LABELS_MAX,
    ssh_key,
    vm::{CPUS, CreateRequest, DISK, MEMORY, TTL_SECONDS},
};

use super::{feature, reference};

/// Checks a create.
///
/// # Errors
/// `invalid_argument` naming the field, its value and what it may be.
pub fn check(request: &CreateRequest) -> Result<(), ApiError> {
    reference::parse(&request.image)?;
    size(request.cpus, request.memory, request.disk)?;
    timeout(request.timeout_ms)?;
    labels(request.labels.len())?;
    lifetime(request.ttl_seconds, request.deletion_protection)?;
    idle(request.idle_seconds, request.idle_action, request.deletion_protection)?;
    feature::check(&request.features)?;
    ssh_key::check(&request.ssh_keys)
}

/// Checks how large a VM would be.
///
/// # Errors
/// `invalid_argument` naming what is out of range.
pub fn size(cpus: u32, memory: MebiBytes, disk: MebiBytes) -> Result<(), ApiError> {
    if !CPUS.contains(&cpus) {
        let error = ApiError::invalid_argument(format!("a VM cannot have {cpus} CPUs"));
        return Err(error.hint(format!("`cpus` is {} to {}", CPUS.start(), CPUS.end())));
    }
    range("memory", memory, &MEMORY)?;
    range("disk", disk, &DISK)
}

/// Checks a request's `timeout_ms`.
///
/// # Errors
/// `invalid_argument`: it is zero or over the longest wait.
pub fn timeout(timeout_ms: u64) -> Result<(), ApiError> {
    if (1..=WAIT_MAX_MS).contains(&timeout_ms) {
        return Ok(());
    }
    Err(ApiError::invalid_argument(format!("`timeout_ms` cannot be {timeout_ms}"))
        .hint(format!("it is 1 to {WAIT_MAX_MS}")))
}

/// Checks how many labels a VM would have.
///
/// # Errors
/// `invalid_argument`: too many.
pub fn labels(count: usize) -> Result<(), ApiError> {
    if count <= LABELS_MAX {
        return Ok(());
    }
    Err(ApiError::invalid_argument(format!("{count} labels are too many")).hint(format!("a VM takes {LABELS_MAX}")))
}

/// Checks a time to live beside deletion protection.
///
/// # Errors
/// `invalid_argument`: out of range, or both at once.
pub fn lifetime(ttl_seconds: Option<u64>, protected: bool) -> Result<(), ApiError> {
    match ttl_seconds {
        Some(_) if protected => {
            Err(ApiError::invalid_argument("a VM cannot have both `ttl_seconds` and `deletion_protection`")
                .hint("one says when to delete it, the other never to"))
        }
        Some(ttl) if !TTL_SECONDS.contains(&ttl) => Err(ApiError::invalid_argument(format!(
            "`ttl_seconds` cannot be {ttl}"
        ))
        .hint(format!("it is {} to {}", TTL_SECONDS.start(), TTL_SECONDS.end()))),
        _ => Ok(()),
    }
}

/// Checks an idle limit beside deletion protection; what it is, if there is one.
///
/// # Errors
/// `invalid_argument`: out of range, an action without a time, or a delete of what is protected.
pub fn idle(seconds: Option<u64>, action: Option<IdleAction>, protected: bool) -> Result<Option<IdleLimit>, ApiError> {
    let Some(seconds) = seconds else {
        return match action {
            None => Ok(None),
            Some(_) => Err(ApiError::invalid_argument(
                "`idle_action` says what happens after `idle_seconds`, which is missing",
            )
            .hint("say after how long, too")),
        };
    };
    if !IDLE_SECONDS.contains(&seconds) {
        let (least, most) = (IDLE_SECONDS.start(), IDLE_SECONDS.end());
        return Err(ApiError::invalid_argument(format!("`idle_seconds` cannot be {seconds}"))
            .hint(format!("it is {least} to {most}")));
    }
    let action = action.unwrap_or_default();
    if protected && action == IdleAction::Delete {
        return Err(ApiError::invalid_argument("a VM with `deletion_protection` cannot be deleted once it is idle")
            .hint("let `idle_action` be stop or pause"));
    }
    Ok(Some(IdleLimit { seconds, action }))
}

fn range(field: &str, value: MebiBytes, allowed: &std::ops::RangeInclusive<MebiBytes>) -> Result<(), ApiError> {
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(ApiError::invalid_argument(format!("a VM cannot have {value} of {field}")).hint(format!(
        "`{field}` is {} to {}",
        allowed.start(),
        allowed.end()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use contract::ErrorCode;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJk5hJv8rEx3l2Qm0kTkq3zN0a0y8mX0kq1l0nB1bZ0a me@example";

    fn request(json: serde_json::Value) -> CreateRequest {
        let mut whole = serde_json::json!({"name": "web", "image": "debian"});
        whole.as_object_mut().unwrap().extend(json.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn the_defaults_and_a_key_are_taken() {
        check(&request(serde_json::json!({}))).unwrap();
        check(&request(serde_json::json!({"ssh_keys": [KEY], "image": "r:5000/debian:12"}))).unwrap();
    }

    #[test]
    fn each_wrong_field_is_named_with_what_it_may_be() {
        for (wrong, message, hint) in [
            (serde_json::json!({"cpus": 0}), "0 CPUs", "1 to 64"),
            (serde_json::json!({"cpus": 65}), "65 CPUs", "1 to 64"),
            (serde_json::json!({"memory": 1}), "1M of memory", "96M to 1024G"),
            (serde_json::json!({"disk": "1M"}), "1M of disk", "16M to"),
            (serde_json::json!({"timeout_ms": 0}), "timeout_ms", "1 to 600000"),
            (serde_json::json!({"idle_seconds": 5}), "idle_seconds", "10 to"),
            (serde_json::json!({"idle_action": "stop"}), "idle_action", "after how long"),
            (
                serde_json::json!({"idle_seconds": 60, "idle_action": "delete", "deletion_protection": true}),
                "deletion_protection",
                "stop or pause",
            ),
            (serde_json::json!({"image": "a b"}), "image name", "image ls"),
            (serde_json::json!({"ssh_keys": [KEY, "hello"]}), "ssh key 2", ".pub"),
            (serde_json::json!({"ssh_keys": [KEY.replace("ssh-ed25519", "ssh-rsa")]}), "one type", ".pub"),
            (serde_json::json!({"ssh_keys": [format!("{KEY}\nrm")]}), "more than one line", ".pub"),
            (serde_json::json!({"ssh_keys": ["ssh-ed25519 AAAA!"]}), "base64", ".pub"),
            (serde_json::json!({"ssh_keys": ["x".repeat(9000)]}), "too long", ".pub"),
        ] {
            let error = check(&request(wrong.clone())).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument);
            assert!(error.message.contains(message), "{wrong}: {}", error.message);
            assert!(error.hint.as_deref().unwrap().contains(hint), "{wrong}: {:?}", error.hint);
        }
    }
}

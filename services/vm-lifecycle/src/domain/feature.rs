//! What a VM's **features** must be before anything is written down.

use std::collections::BTreeSet;

use contract::{
    ApiError,
    feature::{
        DATA_DISKS_MAX, DataDisk, ENV_BYTES_MAX, ENV_MAX, Features, KERNEL_ARGS_MAX, PORTS_MAX, PublishedPort,
        USER_DATA_MAX,
    },
    vm::DISK,
};

/// The longest serial number of a virtio disk (VIRTIO 1.2 §5.2.6).
const SERIAL_MAX: usize = 20;

fn refuse(message: impl Into<String>, hint: impl Into<String>) -> ApiError {
    ApiError::invalid_argument(message).hint(hint)
}

/// Checks a VM's features.
///
/// # Errors
/// `invalid_argument` naming the field and what it may be.
pub fn check(features: &Features) -> Result<(), ApiError> {
    environment(features)?;
    kernel_args(&features.kernel_args)?;
    user_data(features.user_data.as_deref())?;
    disks(&features.disks)?;
    ports(&features.ports)
}

fn environment(features: &Features) -> Result<(), ApiError> {
    if features.env.len() > ENV_MAX {
        let message = format!("{} environment variables are too many", features.env.len());
        return Err(refuse(message, format!("a VM takes {ENV_MAX}")));
    }
    let bytes: usize = features.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > ENV_BYTES_MAX {
        let hint = format!("it has at most {ENV_BYTES_MAX} bytes");
        return Err(refuse(format!("an environment of {bytes} bytes is too long"), hint));
    }
    for (name, value) in &features.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            let message = format!("{name:?} cannot be an environment variable");
            return Err(refuse(message, "a name is not empty and has no `=`, and nothing holds a NUL"));
        }
    }
    for (field, argv) in [("entrypoint", &features.entrypoint), ("cmd", &features.cmd)] {
        if argv.iter().flatten().any(|word| word.contains('\0')) {
            return Err(refuse(format!("`{field}` holds a NUL"), "arguments are text"));
        }
    }
    Ok(())
}

fn kernel_args(text: &str) -> Result<(), ApiError> {
    if text.len() > KERNEL_ARGS_MAX || text.chars().any(|c| !(c == ' ' || c.is_ascii_graphic())) {
        let hint = format!("they are at most {KERNEL_ARGS_MAX} printable ASCII characters");
        return Err(refuse("`kernel_args` are too long or hold strange characters", hint));
    }
    match text.split(' ').find(|word| *word == "--" || word.starts_with("rdinit=")) {
        Some(word) => Err(refuse(format!("`kernel_args` cannot hold {word}"), "the first process is Warren's")),
        None => Ok(()),
    }
}

fn user_data(script: Option<&str>) -> Result<(), ApiError> {
    let Some(script) = script else { return Ok(()) };
    if script.len() > USER_DATA_MAX {
        let message = format!("`user_data` of {} bytes is too long", script.len());
        return Err(refuse(message, format!("it has at most {USER_DATA_MAX} bytes; fetch the rest from within")));
    }
    if !script.starts_with("#!") {
        return Err(refuse("`user_data` does not begin with `#!`", "its first line names its interpreter: #!/bin/sh"));
    }
    Ok(())
}

fn disks(disks: &[DataDisk]) -> Result<(), ApiError> {
    if disks.len() > DATA_DISKS_MAX {
        let message = format!("{} data disks are too many", disks.len());
        return Err(refuse(message, format!("a VM takes {DATA_DISKS_MAX}")));
    }
    let (mut names, mut mounts) = (BTreeSet::new(), BTreeSet::new());
    for disk in disks {
        let name = &disk.name;
        if name.as_str().len() > SERIAL_MAX {
            let hint = format!("it has at most {SERIAL_MAX} characters, as it is the disk's serial number");
            return Err(refuse(format!("the data disk's name {name} is too long"), hint));
        }
        if name.as_str().starts_with("warren-") {
            let message = format!("a data disk cannot be named {name}");
            return Err(refuse(message, "names that begin with warren- are Warren's own disks"));
        }
        if !names.insert(name.as_str()) {
            return Err(refuse(format!("two data disks are named {name}"), "each has a name of its own"));
        }
        if !DISK.contains(&disk.size) {
            let hint = format!("it is {} to {}", DISK.start(), DISK.end());
            return Err(refuse(format!("the data disk {name} cannot have {}", disk.size), hint));
        }
        let Some(mount) = &disk.mount else { continue };
        if !is_mount_point(mount) || !mounts.insert(mount) {
            let hint = "an absolute path below /, without `..`, and one for each disk";
            return Err(refuse(format!("the data disk {name} cannot be mounted at {mount:?}"), hint));
        }
    }
    Ok(())
}

fn is_mount_point(path: &str) -> bool {
    path.len() <= 255
        && path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains(char::is_control))
        })
}

/// Checks published ports.
///
/// # Errors
/// `invalid_argument`: too many, or one taken twice.
pub fn ports(ports: &[PublishedPort]) -> Result<(), ApiError> {
    if ports.len() > PORTS_MAX {
        return Err(refuse(format!("{} ports are too many", ports.len()), format!("a VM publishes {PORTS_MAX}")));
    }
    let mut taken = BTreeSet::new();
    match ports.iter().find(|port| !taken.insert((port.protocol, port.host))) {
        Some(port) => {
            let message = format!("the host's port {}/{} is published twice", port.host, port.protocol.as_str());
            Err(refuse(message, "each of the host's ports leads to one place"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features(json: serde_json::Value) -> Features {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn each_wrong_feature_is_named_with_what_it_may_be() {
        use serde_json::json;
        check(&features(json!({}))).unwrap();
        check(&features(json!({"ports": ["80:80", "80:80/udp"], "user_data": "#!/bin/sh\n",
            "disks": [{"name": "work", "size": "1G", "mount": "/srv/work"}], "kernel_args": "mitigations=off"})))
        .unwrap();
        for (wrong, message) in [
            (json!({"env": {"A=B": "x"}}), "environment variable"),
            (json!({"kernel_args": "rdinit=/bin/sh"}), "rdinit"),
            (json!({"kernel_args": "a\nb"}), "strange characters"),
            (json!({"user_data": "echo hi"}), "#!"),
            (json!({"user_data": format!("#!{}", "x".repeat(USER_DATA_MAX))}), "too long"),
            (json!({"ports": ["80:80", "80:81"]}), "twice"),
            (json!({"disks": [{"name": "w", "size": "1M"}]}), "cannot have 1M"),
            (json!({"disks": [{"name": "w", "size": "1G"}, {"name": "w", "size": "1G"}]}), "two data disks"),
            (json!({"disks": [{"name": "w", "size": "1G", "mount": "/a/../etc"}]}), "mounted at"),
            (json!({"disks": [{"name": "w", "size": "1G", "mount": "/"}]}), "mounted at"),
            (json!({"disks": [{"name": "a".repeat(21), "size": "1G"}]}), "too long"),
        ] {
            let error = check(&features(wrong.clone())).unwrap_err();
            assert!(error.message.contains(message), "{wrong}: {}", error.message);
        }
    }
}

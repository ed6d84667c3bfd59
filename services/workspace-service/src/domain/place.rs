//! A **place** is a directory of a VM where a workspace may be: absolute, in plain form, and nothing a system needs.

use contract::{ApiError, worktree::PATH_MAX};

/// The longest name of an owner, in bytes: a user name of useradd(8), or two numbers and a colon.
const OWNER_MAX: usize = 32;

/// Neither these nor what is below them: kernel interfaces, programs, configuration.
const SYSTEM: [&str; 15] = [
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib/warren",
    "/var/run",
];

/// Not these themselves, although what is below them: a workspace replaces its directory as a whole.
const HOMES: [&str; 16] = [
    "/",
    "/home",
    "/media",
    "/mnt",
    "/opt",
    "/root",
    "/srv",
    "/tmp",
    "/usr/local",
    "/usr/src",
    "/var",
    "/var/cache",
    "/var/lib",
    "/var/log",
    "/var/spool",
    "/var/tmp",
];

/// Below [`SYSTEM`] and yet nobody's but the image's author's.
const ALLOWED: [&str; 2] = ["/usr/src", "/usr/local/src"];

/// The path in plain form: one slash between names, none at the end, no `.`.
///
/// # Errors
/// `invalid_argument`: no workspace may be there.
pub fn path(text: &str) -> Result<String, ApiError> {
    let refuse = |why: &str| {
        let shown: String = text.chars().take(80).collect();
        ApiError::invalid_argument(format!("the workspace's path {shown:?} {why}"))
            .hint("give an absolute directory of its own in the VM, such as /workspace or /srv/app")
    };
    if text.len() > PATH_MAX {
        return Err(refuse(&format!("is longer than {PATH_MAX} bytes")));
    }
    if text.contains(char::is_control) {
        return Err(refuse("holds control characters"));
    }
    if !text.starts_with('/') {
        return Err(refuse("is not absolute"));
    }
    let names: Vec<&str> = text.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
    if names.contains(&"..") {
        return Err(refuse("holds `..`"));
    }
    if names.iter().any(|name| name.len() > 255) {
        return Err(refuse("holds a name longer than 255 bytes"));
    }
    let plain = format!("/{}", names.join("/"));
    if names.contains(&".git") {
        return Err(refuse("leads into a repository's `.git`"));
    }
    let reserved =
        SYSTEM.iter().any(|dir| plain == *dir || within(&plain, dir)) && !ALLOWED.iter().any(|dir| within(&plain, dir));
    if reserved || HOMES.contains(&plain.as_str()) {
        return Err(refuse("is a directory of the system, which a workspace would replace"));
    }
    Ok(plain)
}

/// Whether a path in plain form lies below a directory.
pub fn within(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'))
}

/// Checks whose the files shall be: a user name, `uid`, or `uid:gid`.
///
/// # Errors
/// `invalid_argument`.
pub fn owner(text: &str) -> Result<(), ApiError> {
    let number = |text: &str| !text.is_empty() && text.parse::<u32>().is_ok_and(|id| id != u32::MAX);
    let name = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
    };
    let known = match text.split_once(':') {
        Some((uid, gid)) => number(uid) && number(gid),
        None => number(text) || name(text),
    };
    if known && text.len() <= OWNER_MAX {
        return Ok(());
    }
    let shown: String = text.chars().take(80).collect();
    Err(ApiError::invalid_argument(format!("{shown:?} is no owner"))
        .hint("name a user of the VM, or give uid or uid:gid, such as 1000:1000"))
}

#[cfg(test)]
mod tests {
    use contract::ErrorCode;

    use super::*;

    #[test]
    fn a_directory_of_its_own_is_taken_in_plain_form() {
        for (given, plain) in [
            ("/workspace", "/workspace"),
            ("/workspace/", "/workspace"),
            ("//srv/./app//", "/srv/app"),
            ("/usr/src/app", "/usr/src/app"),
            ("/home/ann/a b/ä", "/home/ann/a b/ä"),
            ("/etcetera", "/etcetera"),
        ] {
            assert_eq!(path(given).unwrap(), plain);
        }
    }

    #[test]
    fn what_a_system_needs_is_refused() {
        let long = format!("/{}", "a/".repeat(PATH_MAX));
        let name = format!("/{}", "a".repeat(256));
        for given in [
            "",
            "workspace",
            "/",
            "//",
            "/.",
            "/srv/..",
            "/srv/../etc",
            "/etc",
            "/etc/x",
            "/usr/lib/x",
            "/usr/src",
            "/proc/1",
            "/sys",
            "/dev/shm/x",
            "/tmp",
            "/home",
            "/var/lib",
            "/var/lib/warren/x",
            "/a\nb",
            "/a\0b",
            "/srv/app/.git",
            &long,
            &name,
        ] {
            let error = path(given).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument, "{given}");
            assert!(error.hint.is_some() && error.message.len() < 300);
        }
    }

    #[test]
    fn an_owner_is_a_user_or_numbers() {
        for known in ["root", "ann-b.c_1", "_apt", "0", "1000", "1000:100"] {
            assert_eq!(owner(known), Ok(()), "{known}");
        }
        for unknown in ["", "-x", "a b", "ann:users", "1:", ":1", "1:2:3", "4294967295", "../x", "a\n", &"a".repeat(33)]
        {
            assert!(owner(unknown).is_err(), "{unknown:?}");
        }
    }
}

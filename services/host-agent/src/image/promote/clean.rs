//! **Cleaning**: what made one machine of a filesystem is taken out of it, so that every VM of the image becomes one of its own.
//!
//! What people put there stays: homes, workspaces, logs, and also keys that somebody copied elsewhere.

use contract::{ApiError, VmName};

use super::debugfs::{Inside, Kind, Like, plain};

/// Where something of a machine's identity lies.
struct Trace {
    dir: &'static str,
    /// Whether an entry of that name is one.
    is: fn(&str) -> bool,
}

fn all(_: &str) -> bool {
    true
}

fn lease(name: &str) -> bool {
    name.ends_with(".lease") || name.ends_with(".leases")
}

/// Files that are removed: whoever needs them makes them anew (machine-id(5), sshd(8), random-seed(8), dhclient(8)).
const TRACES: [Trace; 13] = [
    Trace { dir: "/etc/ssh", is: |name| name.starts_with("ssh_host_") },
    Trace { dir: "/etc/dropbear", is: |name| name.starts_with("dropbear_") && name.ends_with("_host_key") },
    Trace { dir: "/var/lib/dbus", is: |name| name == "machine-id" },
    Trace { dir: "/var/lib/systemd", is: |name| matches!(name, "random-seed" | "credential.secret") },
    Trace { dir: "/var/lib/urandom", is: |name| name == "random-seed" },
    Trace { dir: "/var/lib", is: |name| name == "random-seed" },
    Trace { dir: "/var/lib/dhcp", is: all },
    Trace { dir: "/var/lib/dhclient", is: all },
    Trace { dir: "/var/lib/dhcpcd", is: |name| lease(name) || name.starts_with("duid") || name == "secret" },
    Trace { dir: "/var/lib/NetworkManager", is: |name| lease(name) || matches!(name, "secret_key" | "seen-bssids") },
    Trace { dir: "/var/lib/cloud", is: |name| name == "instance" },
    Trace { dir: "/var/lib/cloud/data", is: all },
    Trace { dir: "/var/lib/cloud/sem", is: all },
];

/// What guest-agent leaves in a VM (its `boot/identity.rs` and `user_data.rs`) and writes again in every other.
const OWN: [Trace; 2] = [
    Trace { dir: "/var/lib/warren", is: |name| matches!(name, "user-data" | "user-data.done") },
    Trace { dir: "/var/log", is: |name| name == "warren-user-data.log" },
];

/// How `/etc/resolv.conf` begins where guest-agent wrote it.
const RESOLVER: &str = "# Written by guest-agent";
/// How guest-agent's own line in `/etc/hosts` ends.
const HOSTS_MARK: &str = "# warren";

/// Takes a machine's identity out, but not what guest-agent left.
///
/// # Errors
/// The filesystem cannot be changed.
pub(super) fn identity(inside: &Inside<'_>) -> Result<(), ApiError> {
    remove(inside, &TRACES)?;
    // There and empty, each VM gets one at its first boot; missing, the boot is one that asks its user.
    if let Some(old) = inside.find("/etc", "machine-id")? {
        let mode = if old.kind == Kind::File { old.mode } else { 0o444 };
        inside.put("/etc", "machine-id", b"", &Like { mode, uid: 0, gid: 0 })?;
    }
    Ok(())
}

/// Takes out what guest-agent left in the VM of that name.
///
/// # Errors
/// The filesystem cannot be changed.
pub(super) fn agent(inside: &Inside<'_>, vm: &VmName) -> Result<(), ApiError> {
    remove(inside, &OWN)?;
    let mut script = String::new();
    if inside.read("/etc", "hostname")?.is_some_and(|text| text.trim() == vm.as_str()) {
        script.push_str("rm /etc/./hostname\n");
    }
    if inside.read("/etc", "resolv.conf")?.is_some_and(|text| text.starts_with(RESOLVER)) {
        script.push_str("rm /etc/./resolv.conf\n");
    }
    if !script.is_empty() {
        inside.change(&script, &[])?;
    }
    let Some(hosts) = inside.read("/etc", "hosts")? else { return Ok(()) };
    let kept: String = hosts.split_inclusive('\n').filter(|line| !line.trim_end().ends_with(HOSTS_MARK)).collect();
    match inside.find("/etc", "hosts")? {
        Some(old) if kept != hosts => {
            inside.put("/etc", "hosts", kept.as_bytes(), &Like { mode: old.mode, uid: old.uid, gid: old.gid })
        }
        _ => Ok(()),
    }
}

fn remove(inside: &Inside<'_>, traces: &[Trace]) -> Result<(), ApiError> {
    let mut script = String::new();
    for Trace { dir, is } in traces {
        for entry in inside.list(dir)? {
            if matches!(entry.kind, Kind::File | Kind::Link) && plain(&entry.name) && is(&entry.name) {
                script.push_str(&format!("rm {dir}/./{}\n", entry.name));
            }
        }
    }
    if script.is_empty() { Ok(()) } else { inside.change(&script, &[]) }
}

/// Lets the owners of these keys log in as root, beside who may already.
///
/// # Errors
/// `/root/.ssh` is there and no directory, or the filesystem cannot be changed.
pub(super) fn seed_keys(inside: &Inside<'_>, keys: &[String]) -> Result<(), ApiError> {
    const HOME: &str = "/root";
    const DIR: &str = "/root/.ssh";
    const FILE: &str = "authorized_keys";
    if keys.is_empty() {
        return Ok(());
    }
    if inside.find("/", "root")?.is_none() {
        make_directory(inside, "/", "root")?;
    }
    if inside.find(HOME, ".ssh")?.is_none() {
        make_directory(inside, HOME, ".ssh")?;
    }
    let mut text = inside.read(DIR, FILE)?.unwrap_or_default();
    for key in keys.iter().map(|key| key.trim()) {
        if text.lines().any(|line| line.trim() == key) {
            continue;
        }
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(key);
        text.push('\n');
    }
    inside.put(DIR, FILE, text.as_bytes(), &Like { mode: 0o600, uid: 0, gid: 0 })
}

/// Makes a directory that is root's alone.
fn make_directory(inside: &Inside<'_>, parent: &str, name: &str) -> Result<(), ApiError> {
    inside.change(&format!("cd {parent}/.\nmkdir {name}\nset_inode_field {name} mode 040700\n"), &[])
}

//! Filesystems as guests leave them, made images of.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use contract::{ErrorCode, ImageId, MebiBytes, OperationId, VmId, feature::Features, image::ImageConfig};
use tokio_util::sync::CancellationToken;

use super::*;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPvBF0zB1rGJqTqXhXbXUkPzGb5ZgqkX6QEY5yLQd1x me@there";

fn spec() -> VmSpec {
    VmSpec {
        id: VmId::new(),
        name: "web".parse().unwrap(),
        image: ImageId::new(),
        config: ImageConfig::default(),
        cpus: 1,
        memory: MebiBytes(128),
        disk: MebiBytes(512),
        address: "10.77.0.2/24".parse().unwrap(),
        gateway: [10, 77, 0, 1].into(),
        mac: "02:57:0a:4d:00:02".into(),
        domain: "warren".into(),
        ssh_keys: vec![],
        features: Features::default(),
        kernel: None,
    }
}

fn order(ssh_keys: &[&str], keep_identity: bool) -> Order {
    Order { vm: VmId::new(), ssh_keys: ssh_keys.iter().map(|key| (*key).to_owned()).collect(), keep_identity }
}

/// A filesystem of 512 MiB with that tree in it.
fn filesystem(dir: &Path, tree: &Path) -> PathBuf {
    let path = dir.join("fs");
    let made =
        Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).args([tree, &path]).arg("512M").status().unwrap();
    assert!(made.success());
    path
}

fn put(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A tree of a machine that has lived.
fn lived(root: &Path) {
    for (name, text) in [
        ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
        ("etc/ssh/ssh_host_ed25519_key", "PRIVATE-HOST-KEY"),
        ("etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 x"),
        ("etc/ssh/sshd_config", "Port 22\n"),
        ("etc/hostname", "web\n"),
        ("etc/hosts", "127.0.0.1 localhost\n10.77.0.9 db # mine\n10.77.0.2 web.warren web # warren\n"),
        ("etc/resolv.conf", "# Written by guest-agent at each boot.\nnameserver 10.77.0.1\n"),
        ("var/lib/systemd/random-seed", "RANDOM-SEED"),
        ("var/lib/dhcp/dhclient.eth0.leases", "lease {}"),
        ("var/lib/dbus/machine-id", "0123456789abcdef0123456789abcdef\n"),
        ("var/lib/warren/user-data.done", "vm"),
        ("var/lib/warren/workspaces/x", "kept"),
        ("bin/sh", "program"),
        ("root/work", "WORK"),
        ("deleted", &"DELETED-SECRET".repeat(10_000)),
    ] {
        put(root, name, text);
    }
}

fn work_on(path: &Path, order: &Order) -> Result<(), ApiError> {
    let cancel = CancellationToken::new();
    let patient = Patient::take(path, OperationId::new(), 1_800_000_000, &cancel)?;
    work(&patient, order, &spec(), &Reporter::default())?;
    patient.give_back()
}

fn inside(path: &Path, command: &str) -> String {
    let output = Command::new("debugfs").args(["-R", command]).arg(path).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn contains(path: &Path, needle: &str) -> bool {
    memchr::memmem::find(&fs::read(path).unwrap(), needle.as_bytes()).is_some()
}

fn clean(path: &Path) -> bool {
    Command::new("e2fsck").args(["-f", "-n"]).arg(path).output().unwrap().status.success()
}

#[test]
fn what_made_it_one_machine_goes_and_what_people_put_there_stays() {
    let (dir, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    lived(root.path());
    let path = filesystem(dir.path(), root.path());
    inside(&path, "ls /");
    assert!(Command::new("debugfs").args(["-w", "-R", "rm /deleted"]).arg(&path).status().unwrap().success());
    assert!(contains(&path, "DELETED-SECRET"));
    work_on(&path, &order(&[KEY], false)).unwrap();

    assert!(clean(&path));
    for gone in ["DELETED-SECRET", "PRIVATE-HOST-KEY", "RANDOM-SEED", "0123456789abcdef"] {
        assert!(!contains(&path, gone), "{gone} is still there");
    }
    assert!(inside(&path, "stat /etc/machine-id").contains("Size: 0"));
    let ssh = inside(&path, "ls -p /etc/ssh");
    assert!(ssh.contains("sshd_config") && !ssh.contains("ssh_host"), "{ssh}");
    assert_eq!(inside(&path, "cat /etc/hosts"), "127.0.0.1 localhost\n10.77.0.9 db # mine\n");
    assert!(!inside(&path, "ls -p /etc").contains("resolv.conf"));
    assert_eq!(inside(&path, "cat /root/work"), "WORK");
    assert_eq!(inside(&path, "cat /var/lib/warren/workspaces/x"), "kept");
    assert_eq!(inside(&path, "cat /root/.ssh/authorized_keys"), format!("{KEY}\n"));
    let (ssh, keys) = (inside(&path, "stat /root/.ssh"), inside(&path, "stat /root/.ssh/authorized_keys"));
    assert!(ssh.contains("Mode:  0700") && keys.contains("Mode:  0600") && keys.contains("User:     0"), "{ssh}{keys}");
    let metadata = fs::metadata(&path).unwrap();
    assert!(
        metadata.len() < 200 << 20 && metadata.blocks() * 512 < 20 << 20,
        "{} {}",
        metadata.len(),
        metadata.blocks()
    );
    assert_eq!((metadata.uid(), metadata.permissions().mode() & 0o777), (nix::unistd::geteuid().as_raw(), 0o644));
    assert!(inside(&path, "stats").contains("has_journal"));
}

#[test]
fn the_same_disk_becomes_the_same_image_and_keys_are_added_once() {
    let (dir, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    lived(root.path());
    put(root.path(), "root/.ssh/authorized_keys", "ssh-ed25519 theirs");
    let path = filesystem(dir.path(), root.path());
    let again = dir.path().join("again");
    fs::copy(&path, &again).unwrap();
    for path in [&path, &again] {
        work_on(path, &order(&[KEY, KEY], true)).unwrap();
        assert_eq!(inside(path, "cat /root/.ssh/authorized_keys"), format!("ssh-ed25519 theirs\n{KEY}\n"));
        assert!(inside(path, "cat /etc/machine-id").starts_with("0123"), "identity was to be kept");
        assert!(inside(path, "ls -p /etc/ssh").contains("ssh_host_ed25519_key"));
        assert!(!inside(path, "ls -p /etc").contains("hostname"), "what guest-agent wrote goes all the same");
    }
    assert!(fs::read(&path).unwrap() == fs::read(&again).unwrap());
}

#[test]
fn links_and_names_that_a_guest_chose_lead_nowhere() {
    let (dir, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outside = dir.path().join("outside");
    put(&outside, "ssh_host_key", "the host's own");
    lived(root.path());
    for name in ["ssh_host_a\nrm root\n", "ssh_host_\"; rm root", "ssh_host_a b", "ssh_host_\u{fffd}"] {
        fs::write(root.path().join("etc/ssh").join(name), "x").unwrap();
    }
    // The directories of identity lead out, in circles, and to what is none.
    fs::remove_dir_all(root.path().join("var/lib/dhcp")).unwrap();
    symlink(&outside, root.path().join("var/lib/dhcp")).unwrap();
    symlink("NetworkManager", root.path().join("var/lib/NetworkManager")).unwrap();
    fs::write(root.path().join("var/lib/cloud"), "a file").unwrap();
    fs::rename(root.path().join("etc"), root.path().join("moved")).unwrap();
    symlink("../../moved", root.path().join("etc")).unwrap();
    symlink("/moved/ssh", root.path().join("root/.ssh")).unwrap();
    let path = filesystem(dir.path(), root.path());
    work_on(&path, &order(&[KEY], false)).unwrap();
    assert!(clean(&path));
    assert_eq!(fs::read_to_string(outside.join("ssh_host_key")).unwrap(), "the host's own");
    assert_eq!(inside(&path, "cat /root/work"), "WORK");
    assert!(inside(&path, "stat /moved/machine-id").contains("Size: 0"), "a link within is followed");
    assert!(!inside(&path, "ls -p /moved/ssh").contains("ssh_host_ed25519_key"));
    assert_eq!(inside(&path, "cat /moved/ssh/authorized_keys"), format!("{KEY}\n"));
}

#[test]
fn nothing_hides_behind_more_names_than_are_looked_at() {
    let (dir, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    lived(root.path());
    for n in 0..17_000 {
        fs::write(root.path().join(format!("etc/ssh/{n:0>250}")), "").unwrap();
    }
    let path = filesystem(dir.path(), root.path());
    let refused = work_on(&path, &order(&[], false)).unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition, "{refused:?}");
    assert!(refused.message.contains("/etc/ssh/") && refused.hint.is_some(), "{refused:?}");
}

#[test]
fn what_is_no_filesystem_or_no_root_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fs");
    let noise: Vec<u8> = (0..8u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(&path, &noise).unwrap();
    let refused = work_on(&path, &order(&[], false)).unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition, "{refused:?}");

    // One whose inodes and bitmaps were overwritten: mended, or refused, and never half of it.
    let root = tempfile::tempdir().unwrap();
    lived(root.path());
    let path = filesystem(dir.path(), root.path());
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    for at in [64 << 10, 1 << 20, 2 << 20] {
        file.write_all_at(&noise[..300_000], at).unwrap();
    }
    match work_on(&path, &order(&[KEY], false)) {
        Ok(()) => assert!(clean(&path)),
        Err(error) => assert_eq!(error.code, ErrorCode::FailedPrecondition, "{error:?}"),
    }

    let empty = tempfile::tempdir().unwrap();
    let path = filesystem(dir.path(), empty.path());
    assert!(work_on(&path, &order(&[], false)).unwrap_err().message.contains("no root filesystem"));
}

//! Images in files: a filesystem that somebody has becomes one that boots.

mod common;

use std::{path::Path, process::Command};

use common::{lab_or_skip, refused};
use serde_json::Value;
use testkit::lab::LabOptions;

/// A root filesystem with busybox and nothing else.
fn tree(dir: &Path) {
    for sub in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
        std::fs::create_dir_all(dir.join(sub)).unwrap();
    }
    std::fs::copy("/bin/busybox", dir.join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", dir.join("bin/sh")).unwrap();
    std::fs::write(dir.join("etc/made"), "by hand\n").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filesystem_is_registered_and_booted() {
    let Some(lab) = lab_or_skip(LabOptions::default()).await else { return };
    let (dir, disk) = (lab.scratch().join("tree"), lab.scratch().join("disk.ext4"));
    tree(&dir);
    let made = Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&dir).arg(&disk).arg("48M").status();
    assert!(made.unwrap().success());
    let (dir, disk) = (dir.display().to_string(), disk.display().to_string());
    let told = lab.must(&["image", "register", "bb", &disk, "--env", "WHO=image"]).await;
    assert!(told.starts_with("image bb is here: sha256:"), "{told}");
    let image: Value = serde_json::from_str(&lab.must(&["image", "show", "bb", "-o", "json"]).await).unwrap();
    assert_eq!((&image["source"], &image["rootfs_bytes"]), (&"upload:disk.ext4".into(), &(48 << 20).into()));
    lab.must(&["vm", "create", "web", "--image", "bb", "--memory", "128M", "--disk", "128M"]).await;
    assert_eq!(lab.must(&["exec", "web", "--", "/bin/busybox", "cat", "/etc/made"]).await, "by hand\n");

    // The same file again is the same image; the directory is another, and the name is taken.
    lab.must(&["image", "register", "twin", &disk, "--env", "WHO=image"]).await;
    let twin: Value = serde_json::from_str(&lab.must(&["image", "show", "twin", "-o", "json"]).await).unwrap();
    assert_eq!(twin["id"], image["id"]);
    refused(&lab, &["image", "register", "bb", &dir], "already_exists", 4).await;
    lab.must(&["image", "register", "tree", &dir]).await;
    lab.must(&["vm", "create", "two", "--image", "tree", "--memory", "128M", "--disk", "128M"]).await;
    assert_eq!(lab.must(&["exec", "two", "--", "/bin/busybox", "cat", "/etc/made"]).await, "by hand\n");

    std::fs::write(lab.scratch().join("text"), "hello").unwrap();
    let text = lab.scratch().join("text").display().to_string();
    refused(&lab, &["image", "register", "text", &text], "invalid_argument", 2).await;
    refused(&lab, &["image", "register", "none", "/nowhere"], "invalid_argument", 2).await;
    refused(&lab, &["image", "register", "none", "/dev/null"], "invalid_argument", 2).await;
    refused(&lab, &["image", "register", "none", "host:/etc/passwd"], "permission_denied", 8).await;
    refused(&lab, &["image", "register", "none", "host:/srv/../etc"], "invalid_argument", 2).await;
    lab.must(&["vm", "rm", "web"]).await;
    lab.must(&["vm", "rm", "two"]).await;

    // Out, away, and in again: the same image, which boots.
    let (id, digest) = (image["id"].as_str().unwrap(), image["digest"].as_str().unwrap());
    let archive = lab.scratch().join("back.oci.tar").display().to_string();
    let told = lab.must(&["image", "export", "bb", &archive]).await;
    assert!(told.contains(digest), "{told}");
    lab.must(&["image", "rm", id]).await;
    refused(&lab, &["image", "show", "bb"], "not_found", 3).await;
    let told = lab.must(&["image", "import", &archive]).await;
    assert!(told.starts_with(&format!("image back is here: {digest}")), "{told}");
    lab.must(&["image", "import", &archive, "--name", "more"]).await;
    let back: Value = serde_json::from_str(&lab.must(&["image", "show", "more", "-o", "json"]).await).unwrap();
    assert_eq!((&back["digest"], &back["names"]), (&image["digest"], &serde_json::json!(["back", "more"])));
    lab.must(&["vm", "create", "web", "--image", "back", "--memory", "128M", "--disk", "128M"]).await;
    assert_eq!(lab.must(&["exec", "web", "--", "/bin/busybox", "cat", "/etc/made"]).await, "by hand\n");
    lab.must(&["vm", "rm", "web"]).await;
    let whole = std::fs::read(&archive).unwrap();
    std::fs::write(&archive, &whole[..whole.len() / 2]).unwrap();
    let error = lab.warren(&["image", "import", &archive, "--name", "half"]).await;
    assert!(!error.status.success());
    refused(&lab, &["image", "show", "half"], "not_found", 3).await;
    refused(&lab, &["image", "import", "-"], "invalid_argument", 2).await;
    refused(&lab, &["image", "export", "none", &archive], "not_found", 3).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

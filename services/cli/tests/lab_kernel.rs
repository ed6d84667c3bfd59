//! A kernel's life as a user of the command line sees it: imported from files, booted on a host that did not have it, kept while used.

mod common;

use common::{busybox_layout, lab_or_skip, refused};
use serde_json::Value;
use testkit::lab::{Lab, LabOptions};

async fn json(lab: &Lab, args: &[&str]) -> Value {
    serde_json::from_str(&lab.must(args).await).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_is_imported_booted_elsewhere_and_removed_when_nobody_needs_it() {
    let Some(lab) = lab_or_skip(LabOptions { hosts: 2, ..LabOptions::default() }).await else { return };
    let layout = busybox_layout(&lab.scratch());
    let (one, two) = (lab.hosts()[0].clone(), lab.hosts()[1].clone());
    for host in [&one, &two] {
        lab.must(&["image", "pull", &layout, "--layout", "--name", "bb", "--host", host]).await;
    }
    let (file, modules) = (std::env::var("WARREN_KERNEL").unwrap(), std::env::var("WARREN_KERNEL_MODULES").unwrap());
    let text = lab.must(&["kernel", "import", "mine", &file, &modules, "--host", &one]).await;
    assert!(text.contains("kernel mine is here: Linux"), "{text}");
    let mine = json(&lab, &["kernel", "show", "mine", "-o", "json"]).await;
    let release = mine["release"].as_str().unwrap().to_owned();
    assert_eq!(mine["hosts"], serde_json::json!([one]));
    // A second time it is the same.
    lab.must(&["kernel", "import", "again", &file, &modules, "--host", &two]).await;
    assert_eq!(json(&lab, &["kernel", "show", "again", "-o", "json"]).await["id"], mine["id"]);
    lab.must(&["kernel", "rm", "again"]).await;
    refused(&lab, &["kernel", "import", "text", "/etc/hostname"], "invalid_argument", 2).await;
    refused(&lab, &["kernel", "import", "x", "--host-path", "/etc/passwd"], "permission_denied", 8).await;
    refused(&lab, &["kernel", "show", "text"], "not_found", 3).await;

    // It is booted where it was not, and stays for as long as the VM is.
    let create = ["vm", "create", "web", "--image", "bb", "--memory", "128M", "--disk", "256M", "--host", &two];
    lab.must(&[&create[..], &["--kernel", "mine"]].concat()).await;
    let running = async || lab.must(&["exec", "web", "--", "uname", "-r"]).await.trim().to_owned();
    assert_eq!(running().await, release);
    assert_eq!(json(&lab, &["kernel", "show", "mine", "-o", "json"]).await["vms"], 1);
    assert!(lab.must(&["vm", "show", "web"]).await.contains(mine["digest"].as_str().unwrap()));
    refused(&lab, &["kernel", "rm", "mine"], "failed_precondition", 5).await;
    lab.must(&["vm", "restart", "web"]).await;
    assert_eq!(running().await, release);
    let text = lab.must(&["kernel", "default", "mine"]).await;
    assert!(text.contains("VMs boot mine"), "{text}");
    lab.must(&["image", "kernel", "bb", "mine"]).await;
    assert!(lab.must(&["image", "show", "bb"]).await.contains(mine["digest"].as_str().unwrap()));
    lab.must(&["vm", "rm", "web"]).await;
    refused(&lab, &["kernel", "rm", "mine"], "failed_precondition", 5).await;
    lab.must(&["kernel", "default", "--none"]).await;
    refused(&lab, &["kernel", "rm", "mine"], "failed_precondition", 5).await;
    lab.must(&["image", "kernel", "bb", "--none"]).await;
    lab.must(&["kernel", "rm", "mine"]).await;
    for host in [&one, &two] {
        assert_eq!(testkit::lab::entries(&lab.state_dir(host).join("kernel-objects")), Vec::<String>::new());
    }
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

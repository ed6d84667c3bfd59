//! A kernel's life as a user of the command line sees it: imported from files, booted on a host that did not have it, kept while used.

mod common;

use common::{busybox_layout, lab_or_skip, refused};
use serde_json::Value;
use testkit::{
    lab::{Lab, LabOptions},
    registry::Registry,
};

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
    // A host whose files are gone is sent them again; when nobody has them, what to do is said, and a VM that runs is not stopped for it.
    let lose = |host: &str| {
        std::fs::remove_dir_all(lab.state_dir(host).join("kernel-objects").join(mine["id"].as_str().unwrap()))
    };
    lab.must(&["vm", "stop", "web"]).await;
    lose(&two).unwrap();
    lab.must(&["vm", "start", "web"]).await;
    assert_eq!(running().await, release);
    lose(&one).unwrap();
    lose(&two).unwrap();
    let error = refused(&lab, &["vm", "restart", "web"], "failed_precondition", 5).await;
    assert!(error["error"]["hint"].as_str().unwrap().contains("warren kernel import mine"), "{error}");
    assert_eq!(running().await, release);
    lab.must(&["kernel", "import", "mine", &file, &modules, "--host", &two]).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn an_image_takes_its_kernel_along_to_a_lab_that_has_neither() {
    let Some(lab) = lab_or_skip(LabOptions { hosts: 2, ..LabOptions::default() }).await else { return };
    let registry = Registry::start().await;
    let layout = busybox_layout(&lab.scratch());
    let (one, two) = (lab.hosts()[0].clone(), lab.hosts()[1].clone());
    let (file, modules) = (std::env::var("WARREN_KERNEL").unwrap(), std::env::var("WARREN_KERNEL_MODULES").unwrap());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb", "--host", &one]).await;
    lab.must(&["kernel", "import", "mine", &file, &modules, "--host", &two]).await;
    let mine = json(&lab, &["kernel", "show", "mine", "-o", "json"]).await;
    lab.must(&["image", "kernel", "bb", "mine"]).await;
    let reference = registry.reference("warren/bb", "1");
    lab.must(&["image", "push", "bb", &reference]).await;
    let archive = lab.scratch().join("bb.tar").display().to_string();
    lab.must(&["image", "export", "bb", &archive]).await;
    lab.must(&["image", "rm", "bb"]).await;
    lab.must(&["kernel", "rm", "mine"]).await;

    let digest = mine["digest"].as_str().unwrap();
    lab.must(&["image", "pull", &reference, "--name", "bb", "--host", &two]).await;
    let pulled = json(&lab, &["image", "show", "bb", "-o", "json"]).await;
    assert_eq!(pulled["kernel"]["digest"], digest);
    let create = ["vm", "create", "web", "--image", "bb", "--memory", "128M", "--disk", "256M", "--host", &two];
    lab.must(&create).await;
    assert!(lab.must(&["vm", "show", "web"]).await.contains(digest));
    let running = lab.must(&["exec", "web", "--", "uname", "-r"]).await.trim().to_owned();
    assert_eq!(mine["release"], running);
    lab.must(&["vm", "rm", "web"]).await;
    lab.must(&["image", "rm", "bb"]).await;
    lab.must(&["kernel", "rm", digest]).await;

    lab.must(&["image", "import", &archive, "--host", &one]).await;
    let imported = json(&lab, &["image", "show", "bb", "-o", "json"]).await;
    assert_eq!((&imported["digest"], &imported["kernel"]["digest"]), (&pulled["digest"], &pulled["kernel"]["digest"]));
    lab.must(&["image", "rm", "bb"]).await;
    lab.must(&["kernel", "rm", digest]).await;
    for host in [&one, &two] {
        assert_eq!(testkit::lab::entries(&lab.state_dir(host).join("kernel-objects")), Vec::<String>::new());
    }
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_promoted_or_registered_names_a_kernel_and_its_vms_boot_it() {
    let Some(lab) = lab_or_skip(LabOptions::default()).await else { return };
    let layout = busybox_layout(&lab.scratch());
    let (file, modules) = (std::env::var("WARREN_KERNEL").unwrap(), std::env::var("WARREN_KERNEL_MODULES").unwrap());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    lab.must(&["kernel", "import", "mine", &file, &modules]).await;
    let digest = json(&lab, &["kernel", "show", "mine", "-o", "json"]).await["digest"].as_str().unwrap().to_owned();
    let create = ["vm", "create", "web", "--image", "bb", "--memory", "128M", "--disk", "128M"];
    lab.must(&[&create[..], &["--kernel", "mine"]].concat()).await;
    let text = lab.must(&["image", "promote", "web", "taken"]).await;
    assert!(text.contains("its VMs boot Linux"), "{text}");
    // Another disk, or it would be the same image.
    lab.must(&["exec", "web", "--", "sh", "-c", "echo more > /more; sync"]).await;
    lab.must(&["image", "promote", "web", "bare", "--kernel", "default"]).await;
    refused(&lab, &["image", "promote", "web", "no", "--kernel", "nowhere"], "not_found", 3).await;
    lab.must(&["vm", "rm", "web"]).await;
    let named =
        async |image: &str| json(&lab, &["image", "show", image, "-o", "json"]).await["kernel"]["digest"].clone();
    assert_eq!((named("taken").await, named("bare").await), (digest.clone().into(), Value::Null));
    refused(&lab, &["kernel", "rm", "mine"], "failed_precondition", 5).await;
    lab.must(&["vm", "create", "copy", "--image", "taken", "--memory", "128M", "--disk", "128M"]).await;
    assert!(lab.must(&["vm", "show", "copy"]).await.contains(&digest));
    lab.must(&["exec", "copy", "--", "true"]).await;
    lab.must(&["vm", "rm", "copy"]).await;

    let tree = lab.scratch().join("tree");
    std::fs::create_dir_all(tree.join("bin")).unwrap();
    std::fs::copy("/bin/busybox", tree.join("bin/sh")).unwrap();
    let tree = tree.display().to_string();
    refused(&lab, &["image", "register", "no", &tree, "--kernel", "nowhere"], "not_found", 3).await;
    lab.must(&["image", "register", "tree", &tree, "--kernel", "mine"]).await;
    assert_eq!(named("tree").await, digest);
    for image in ["taken", "bare", "tree", "bb"] {
        lab.must(&["image", "rm", image]).await;
    }
    lab.must(&["kernel", "rm", "mine"]).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

//! A VM's work carried to another host by way of a registry: promote, push, pull, boot.

mod common;

use std::time::Duration;

use common::{busybox_layout, debian_layout, lab_or_skip, refused};
use serde_json::Value;
use testkit::{lab::LabOptions, registry::Registry};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJk5hJv8rEx3l2Qm0kTkq3zN0a0y8mX0kq1l0nB1bZ0a me@example";
/// What somebody did in the first VM.
const LIVED: &str = "echo carried > /root/work && mkdir -p /etc/ssh && echo PRIVATE > /etc/ssh/ssh_host_test_key && \
     head -c 512 /dev/urandom > /var/lib/systemd/random-seed; sync; echo lived";

async fn show(lab: &testkit::lab::Lab, what: &str, name: &str) -> Value {
    serde_json::from_str(&lab.must(&["-o", "json", what, "show", name]).await).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_vm_is_promoted_pushed_pulled_on_another_host_and_boots() {
    let Some(lab) = lab_or_skip(LabOptions { hosts: 2, ..Default::default() }).await else { return };
    let Some(layout) = debian_layout(&lab.scratch(), None) else { return };
    let (layout, first, second) = (layout.display().to_string(), &lab.hosts()[0], &lab.hosts()[1]);
    lab.must(&["image", "pull", &layout, "--layout", "--name", "debian", "--host", first]).await;
    lab.must(&["vm", "create", "web", "--image", "debian", "--host", first, "--memory", "256M", "--disk", "1G"]).await;
    assert!(lab.must(&["exec", "web", "--", "sh", "-c", LIVED]).await.contains("lived"));
    let id = lab.must(&["exec", "web", "--", "cat", "/etc/machine-id"]).await;
    assert_eq!(id.trim().len(), 32, "{id}");

    let key = lab.scratch().join("key.pub");
    std::fs::write(&key, format!("{KEY}\n")).unwrap();
    let promoted = lab.must(&["image", "promote", "web", "web-image", "--ssh-key", key.to_str().unwrap()]).await;
    assert!(promoted.contains("web-image is here"), "{promoted}");
    assert!(lab.must(&["exec", "web", "--", "sh", "-c", "echo on > /root/on && cat /root/on"]).await.contains("on"));
    refused(&lab, &["image", "promote", "web", "web-image"], "already_exists", 4).await;

    let registry = Registry::start().await;
    let reference = registry.reference("images/web", "1");
    lab.must(&["image", "push", "web-image", &reference]).await;
    lab.must(&["image", "pull", &reference, "--name", "elsewhere", "--host", second]).await;
    let (here, there) = (show(&lab, "image", "web-image").await, show(&lab, "image", "elsewhere").await);
    assert_eq!(here["digest"], there["digest"], "a promoted image is the same wherever it is pulled");
    lab.must(&["vm", "create", "copy", "--image", "elsewhere", "--host", second, "--memory", "256M", "--disk", "1G"])
        .await;
    let script = "cat /root/work /root/.ssh/authorized_keys; ls /etc/ssh /root";
    let seen = lab.must(&["exec", "copy", "--", "sh", "-c", script]).await;
    assert!(seen.contains("carried") && seen.contains(KEY), "{seen}");
    assert!(!seen.contains("ssh_host_test_key"), "{seen}");
    // Its systemd makes one while it boots.
    let other = testkit::wait_until("a machine id", Duration::from_secs(120), async || {
        Some(lab.must(&["exec", "copy", "--", "cat", "/etc/machine-id"]).await).filter(|id| id.trim().len() == 32)
    });
    assert_ne!(other.await, id, "each is a machine of its own");
    let (web, copy) = (show(&lab, "vm", "web").await, show(&lab, "vm", "copy").await);
    assert!(web["ssh_host_key"].is_string() && web["ssh_host_key"] != copy["ssh_host_key"]);
    assert_eq!(lab.must(&["exec", "copy", "--", "cat", "/etc/hostname"]).await.trim(), "copy");

    for vm in ["web", "copy"] {
        lab.must(&["vm", "rm", vm, "--force"]).await;
    }
    for image in ["web-image", "elsewhere", "debian"] {
        lab.must(&["image", "rm", image]).await;
    }
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_paused_or_whose_disk_is_garbage_makes_no_image_and_a_killed_agent_makes_one() {
    let Some(mut lab) = lab_or_skip(LabOptions::default()).await else { return };
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    lab.must(&["vm", "create", "web", "--image", "bb", "--memory", "128M", "--disk", "128M"]).await;
    lab.must(&["vm", "pause", "web"]).await;
    let error = refused(&lab, &["image", "promote", "web", "no"], "failed_precondition", 5).await;
    assert!(error["error"]["hint"].as_str().unwrap().contains("vm stop web"), "{error}");
    lab.must(&["vm", "resume", "web"]).await;
    // Root of the VM overwrites its own disk, superblocks and all.
    let wreck = "disk=$(awk '$2==\"/\" && $3==\"ext4\" {print $1}' /proc/mounts); \
         yes garbage | dd of=$disk bs=1M count=100 conv=notrunc; sync; echo wrecked";
    lab.must(&["exec", "web", "--", "sh", "-c", wreck]).await;
    lab.must(&["vm", "stop", "web", "--force"]).await;
    let error = refused(&lab, &["image", "promote", "web", "no"], "failed_precondition", 5).await;
    assert!(error["error"]["message"].as_str().unwrap().contains("disk"), "{error}");
    refused(&lab, &["image", "show", "no"], "not_found", 3).await;
    lab.must(&["vm", "rm", "web", "--force"]).await;

    // The host-agent is killed in the middle: what it was at is done from the beginning, and its guest is not left frozen.
    let host = lab.hosts()[0].clone();
    lab.must(&["vm", "create", "web", "--image", "bb", "--memory", "128M", "--disk", "128M"]).await;
    lab.must(&["image", "promote", "web", "whole", "--no-wait"]).await;
    let staging = lab.state_dir(&host).join("staging");
    let begun = async || std::fs::read_dir(&staging).ok()?.next().map(drop);
    testkit::wait_until("the staging", Duration::from_secs(60), begun).await;
    lab.kill(&host);
    lab.start_process(&host, &[]);
    let there = async || lab.warren(&["image", "show", "whole"]).await.status.success().then_some(());
    testkit::wait_until("the image", Duration::from_secs(180), there).await;
    assert!(lab.must(&["exec", "web", "--", "sh", "-c", "echo on > /root/on && cat /root/on"]).await.contains("on"));
    lab.must(&["vm", "rm", "web", "--force"]).await;
    for image in ["whole", "bb"] {
        lab.must(&["image", "rm", image]).await;
    }
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

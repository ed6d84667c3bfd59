//! A VM is changed: what is live is so at once, the rest at its next start, and all of it or nothing.

mod common;

use common::{busybox_layout, lab_or_skip, refused};
use serde_json::Value;
use testkit::lab::{Lab, LabOptions};

/// What a VM is. When it was last active is left out: a guest that has just come up is, whatever is asked of the VM.
async fn show(lab: &Lab, vm: &str) -> Value {
    let mut shown: Value = serde_json::from_str(&lab.must(&["vm", "show", vm, "-o", "json"]).await).unwrap();
    shown.as_object_mut().unwrap().remove("active_at");
    shown
}

async fn guest(lab: &Lab, vm: &str, command: &str) -> String {
    lab.must(&["exec", vm, "--", "sh", "-c", command]).await.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_grows_and_is_renamed_and_a_refused_change_changes_nothing() {
    let Some(lab) = lab_or_skip(LabOptions::default()).await else { return };
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    lab.must(&["vm", "create", "web", "--image", "bb", "--memory", "128M", "--disk", "128M", "--label", "ci=1"]).await;
    lab.must(&["vm", "create", "db", "--image", "bb", "--memory", "128M", "--disk", "128M", "--no-wait"]).await;
    let before = show(&lab, "web").await;

    // Refused as a whole: the labels of the same request are not set either.
    let taken = ["vm", "set", "web", "--name", "db", "--label", "x=y"];
    refused(&lab, &taken, "already_exists", 4).await;
    refused(&lab, &["vm", "set", "web", "--disk", "64M", "--label", "x=y"], "failed_precondition", 5).await;
    refused(&lab, &["vm", "set", "web", "--memory", "1M"], "invalid_argument", 2).await;
    refused(&lab, &["vm", "set", "web", "--memory", "512G"], "resource_exhausted", 6).await;
    refused(&lab, &["vm", "set", "web", "--ttl", "1h", "--deletion-protection", "on"], "invalid_argument", 2).await;
    assert_eq!(show(&lab, "web").await, before);
    let held = "select (cpus_held, memory_held, disk_held)::text from vm.host";
    let sql = lab.sql().await;
    let held_before: String = sql.query_one(held, &[]).await.unwrap().get(0);

    let change =
        ["vm", "set", "web", "--memory", "160M", "--disk", "256M", "--label", "ci=2", "--deletion-protection", "on"];
    let dry = lab.must(&[&change[..], &["--dry-run"]].concat()).await;
    for line in ["memory", "disk", "labels.ci", "deletion_protection", "needs restart", "live"] {
        assert!(dry.contains(line), "{dry}");
    }
    assert_eq!(show(&lab, "web").await, before, "a dry run changes nothing");
    lab.must(&change).await;
    lab.must(&["vm", "rename", "web", "shop"]).await;
    let after = show(&lab, "shop").await;
    assert_eq!(
        (&after["id"], &after["address"], &after["state"]),
        (&before["id"], &before["address"], &before["state"])
    );
    assert_eq!((&after["memory"], &after["labels"]["ci"]), (&Value::from(160), &Value::from("2")), "{after}");
    refused(&lab, &["vm", "show", "web"], "not_found", 3).await;
    refused(&lab, &["vm", "rm", "shop"], "failed_precondition", 5).await;

    // The disk has grown at once, and the filesystem on it; for the rest the guest is as it was until it is restarted.
    let (memory, disk) = ("awk '/MemTotal/ {print $2}' /proc/meminfo", "df -m / | tail -1 | awk '{print $2}'");
    assert!(guest(&lab, "shop", disk).await.parse::<u64>().unwrap() > 200);
    assert_eq!(guest(&lab, "shop", "hostname").await, "web");
    let small: u64 = guest(&lab, "shop", memory).await.parse().unwrap();
    guest(&lab, "shop", "echo kept > /root/file; sync").await;
    lab.must(&["vm", "restart", "shop"]).await;
    assert_eq!(guest(&lab, "shop", "hostname; cat /root/file").await, "shop\nkept");
    let large: u64 = guest(&lab, "shop", memory).await.parse().unwrap();
    assert!(large > small + 20 * 1024, "{small} kB became {large} kB");
    assert!(guest(&lab, "shop", disk).await.parse::<u64>().unwrap() > 200);
    let held_after: String = sql.query_one(held, &[]).await.unwrap().get(0);
    assert_ne!(held_before, held_after, "the host knows what is held of it");

    lab.must(&["vm", "set", "shop", "--deletion-protection", "off"]).await;
    lab.must(&["vm", "rm", "shop"]).await;
    lab.must(&["vm", "rm", "db"]).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

//! Many at once, with real guests: creates overlap, claims serialise, names have one winner.

mod common;

use std::collections::BTreeSet;

use common::{busybox_layout, lab_or_skip};
use futures::future::join_all;
use serde_json::Value;
use testkit::lab::{Lab, LabOptions};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

async fn lab_with_busybox() -> Option<Lab> {
    let lab = lab_or_skip(LabOptions::default()).await?;
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    Some(lab)
}

fn create(name: &str) -> Vec<&str> {
    vec!["vm", "create", name, "--image", "bb", "--memory", "128M", "--disk", "128M"]
}

async fn json(lab: &Lab, args: &[&str]) -> Value {
    let mut all = vec!["-o", "json"];
    all.extend(args);
    serde_json::from_str(&lab.must(&all).await).expect("JSON")
}

fn moment(step: &Value) -> OffsetDateTime {
    OffsetDateTime::parse(step["at"].as_str().expect("a step's time"), &Rfc3339).expect("RFC 3339")
}

#[tokio::test(flavor = "multi_thread")]
async fn four_creates_overlap_in_boot_and_get_different_addresses() {
    let Some(lab) = lab_with_busybox().await else { return };
    let names = ["one", "two", "three", "four"];
    join_all(names.map(|name| {
        let lab = &lab;
        async move { lab.must(&create(name)).await }
    }))
    .await;
    let vms = json(&lab, &["vm", "ls"]).await;
    let vms = vms["vms"].as_array().or(vms.as_array()).expect("a list").clone();
    let addresses: BTreeSet<_> = vms.iter().map(|vm| vm["address"].as_str().unwrap().to_owned()).collect();
    assert_eq!((vms.len(), addresses.len()), (4, 4), "{vms:?}");
    // All were past `boot` before the first was `ready`: they overlapped.
    let operations = json(&lab, &["op", "ls", "--kind", "vm.create"]).await;
    let operations = operations["operations"].as_array().or(operations.as_array()).expect("a list").clone();
    let at = |name: &str| -> Vec<OffsetDateTime> {
        let steps = operations.iter().flat_map(|operation| operation["steps"].as_array().unwrap());
        steps.filter(|step| step["name"] == name).map(moment).collect()
    };
    assert!(at("boot").iter().max() < at("ready").iter().min(), "{operations:?}");
    join_all(names.map(|name| {
        let lab = &lab;
        async move { lab.must(&["vm", "rm", name]).await }
    }))
    .await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn start_stop_and_delete_of_one_vm_come_one_after_the_other() {
    let Some(lab) = lab_with_busybox().await else { return };
    lab.must(&create("web")).await;
    // All four are accepted at once, and each finds what the one before left.
    for verb in ["stop", "start", "restart", "rm"] {
        lab.must(&["vm", verb, "web", "--no-wait"]).await;
    }
    assert_eq!(lab.residue().await, Vec::<String>::new());
    let operations = json(&lab, &["op", "ls"]).await;
    let operations = operations["operations"].as_array().or(operations.as_array()).expect("a list").clone();
    let mut of_vm: Vec<_> = operations.iter().filter(|o| o["kind"].as_str().unwrap().starts_with("vm.")).collect();
    of_vm.sort_by_key(|o| o["epoch"].as_i64());
    let kinds: Vec<_> = of_vm.iter().map(|o| o["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["vm.create", "vm.stop", "vm.start", "vm.restart", "vm.delete"]);
    for pair in of_vm.windows(2) {
        let (ended, began) = (&pair[0]["finished_at"], &pair[1]["started_at"]);
        let parse = |at: &Value| OffsetDateTime::parse(at.as_str().unwrap(), &Rfc3339).unwrap();
        assert!(parse(ended) <= parse(began), "{pair:?}");
        assert_eq!(pair[1]["state"], "succeeded", "{pair:?}");
    }
}

//! Bad input and a lab in trouble: a clear error of the right code, and nothing left behind.

mod common;

use common::{busybox_edition, busybox_layout, lab_or_skip, refused};
use testkit::{lab::LabOptions, registry::Registry};

fn create<'a>(name: &'a str, image: &'a str) -> Vec<&'a str> {
    vec!["vm", "create", name, "--image", image, "--memory", "128M", "--disk", "128M"]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_with_a_reason() {
    let options = LabOptions {
        env: [("WARREN_LAB_NETWORK", "10.77.0.0/24"), ("WARREN_HOST_PREFIX", "30")]
            .map(|(k, v)| (k.into(), v.into()))
            .into(),
        ..Default::default()
    };
    let Some(lab) = lab_or_skip(options).await else { return };
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;

    refused(&lab, &create("web", "nothing"), "not_found", 3).await;
    refused(&lab, &create("../../etc", "bb"), "invalid_argument", 2).await;
    refused(&lab, &["vm", "create", "web", "--image", "bb", "--memory", "1M"], "invalid_argument", 2).await;
    // The same image under its name is nothing new, another one is refused.
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    let other = busybox_edition(&lab.scratch(), "other");
    refused(&lab, &["image", "pull", &other, "--layout", "--name", "bb"], "already_exists", 4).await;
    refused(&lab, &["image", "pull", "/nowhere", "--layout", "--name", "no"], "not_found", 3).await;
    refused(&lab, &["vm", "show", "nobody"], "not_found", 3).await;

    // A /30 has one address for VMs: the second VM finds none.
    lab.must(&create("first", "bb")).await;
    let error = refused(&lab, &create("second", "bb"), "resource_exhausted", 6).await;
    assert!(error["error"]["message"].as_str().unwrap().contains("address"), "{error}");
    refused(&lab, &create("first", "bb"), "already_exists", 4).await;
    lab.must(&["vm", "rm", "first", "--force"]).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_lies_or_is_gone_leaves_nothing() {
    let Some(lab) = lab_or_skip(LabOptions::default()).await else { return };
    let layout = busybox_layout(&lab.scratch());
    let registry = Registry::start().await;
    let reference = registry.push_layout(layout.as_ref(), "bb", "1").await;
    registry.corrupt_a_layer();
    let error = refused(&lab, &["image", "pull", &reference, "--name", "bad"], "failed_precondition", 5).await;
    assert!(error["error"]["message"].as_str().unwrap().contains("digest"), "{error}");
    let missing = reference.replace("bb:1", "bb:2");
    refused(&lab, &["image", "pull", &missing, "--name", "bad"], "not_found", 3).await;
    drop(registry);
    refused(&lab, &["image", "pull", &reference, "--name", "bad"], "unavailable", 9).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

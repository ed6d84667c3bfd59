//! Stories of VMs made images.

use contract::{
    ApiError, ErrorCode, VmId,
    image::{Image, Promote},
    operation::{Cancel, Operation, OperationState},
    vm::VmState,
};
use image_service::Server;
use serde_json::{Value, json};
use testkit::wait_until;

use crate::{
    fake_host::digest,
    kernels::Kernels,
    lab::{BOUND, Lab, registry},
};

async fn promote(lab: &Lab, more: Value) -> Result<Operation, ApiError> {
    let mut request = json!({ "vm": "web", "name": "web-image", "wait": true });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    lab.call::<Promote>(request, None).await
}

/// What the fake host takes the VM's disk for.
fn source(vm: VmId) -> String {
    format!("vm {vm}")
}

#[tokio::test]
async fn a_vm_becomes_an_image_under_its_name_and_the_disks_left_out_are_told() {
    let lab = Lab::start().await;
    let vm = lab.registry.put_vm("web", VmState::Stopped, json!({ "disks": [{ "name": "data", "size": "1G" }] }));
    let done = promote(&lab, json!({})).await.unwrap();
    assert_eq!(done.state, OperationState::Succeeded, "{done:?}");
    let result = done.result.unwrap();
    let image: Image = serde_json::from_value(result["image"].clone()).unwrap();
    assert_eq!((image.digest, image.source.as_str()), (digest(&source(vm)), "vm web"));
    assert_eq!(result["left_out"], json!(["data"]));
    assert_eq!(lab.host.images(), [image.id]);

    // The name is taken by now, also for a VM that is another one; unless it is to be moved.
    lab.registry.put_vm("web", VmState::Running, json!({}));
    assert_eq!(promote(&lab, json!({})).await.unwrap_err().code, ErrorCode::AlreadyExists);
    let moved = promote(&lab, json!({ "replace": true })).await.unwrap();
    let moved: Image = serde_json::from_value(moved.result.unwrap()["image"].clone()).unwrap();
    assert_ne!(moved.id, image.id);
    lab.delete("web-image").await.unwrap();
    lab.delete(&image.id.to_string()).await.unwrap();
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_vm_whose_disk_is_not_to_be_had_is_refused_with_what_to_do() {
    let lab = Lab::start().await;
    assert_eq!(promote(&lab, json!({})).await.unwrap_err().code, ErrorCode::NotFound);
    for (state, more, code, hint) in [
        (VmState::Paused, json!({}), ErrorCode::FailedPrecondition, "vm stop web"),
        (VmState::Starting, json!({}), ErrorCode::FailedPrecondition, "wait"),
        (VmState::Deleting, json!({}), ErrorCode::FailedPrecondition, "vm ls"),
        (VmState::Running, json!({ "host_down": true }), ErrorCode::Unavailable, "agent"),
    ] {
        lab.registry.put_vm("web", state, more);
        let refused = promote(&lab, json!({})).await.unwrap_err();
        assert_eq!(refused.code, code, "{state:?}: {refused:?}");
        assert!(refused.hint.unwrap().contains(hint), "{state:?}");
    }
    for (wrong, what) in [
        (json!({ "ssh_keys": ["-----BEGIN OPENSSH PRIVATE KEY-----"] }), "private key"),
        (json!({ "vm": "" }), "`vm`"),
        (json!({ "timeout_ms": 0 }), "timeout_ms"),
    ] {
        let refused = promote(&lab, wrong).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::InvalidArgument);
        assert!(refused.message.contains(what), "{refused:?}");
    }
    // What the host finds is what is told.
    let vm = lab.registry.put_vm("web", VmState::Running, json!({}));
    lab.host.fail(&source(vm), ApiError::failed_precondition("its guest does not freeze").hint("stop it"));
    assert!(promote(&lab, json!({})).await.unwrap_err().message.contains("does not freeze"));
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_promotion_is_adopted_by_the_next_service_and_a_cancelled_one_leaves_nothing() {
    let mut lab = Lab::start().await;
    lab.pull(&registry("debian"), "debian").await.unwrap();
    let vm = lab.registry.put_vm("web", VmState::Stopped, json!({}));
    lab.host.block(&source(vm));
    let adopted = promote(&lab, json!({ "wait": false })).await.unwrap().id;
    let asked = async || (lab.host.asked(&source(vm)) > 0).then_some(());
    wait_until("the staging", BOUND, asked).await;
    if let Some(server) = lab.server.take() {
        server.shutdown().await;
    }
    lab.server = Some(Server::start(lab.config.clone()).await.unwrap());
    lab.host.release(&source(vm));
    assert_eq!(lab.ended(adopted).await.state, OperationState::Succeeded);

    lab.host.block(&source(vm));
    let cancelled = promote(&lab, json!({ "wait": false, "name": "other" })).await.unwrap().id;
    wait_until("the staging", BOUND, async || lab.host.staging().contains(&cancelled).then_some(())).await;
    lab.call::<Cancel>(json!({ "id": cancelled }), None).await.unwrap();
    assert_eq!(lab.ended(cancelled).await.state, OperationState::Cancelled);
    lab.delete("web-image").await.unwrap();
    lab.delete("debian").await.unwrap();
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_promoted_image_names_the_kernel_its_vm_boots_or_the_one_it_is_told() {
    let kernels = Kernels::start().await;
    let lab = &kernels.lab;
    let (mine, other) = (kernels.imported("/srv/6.1", "mine").await, kernels.imported("/srv/6.2", "other").await);
    let boots = json!({ "booted": { "id": mine.id, "digest": mine.digest, "release": mine.release } });
    let promoted = async |more: Value| {
        let done = promote(lab, more).await.unwrap();
        let result = done.result.unwrap();
        let image: Image = serde_json::from_value(result["image"].clone()).unwrap();
        (image, result["kernel_left_out"].clone())
    };
    lab.registry.put_vm("web", VmState::Stopped, boots.clone());
    let (first, left) = promoted(json!({})).await;
    assert_eq!((first.kernel.as_ref().map(|kernel| kernel.id), left), (Some(mine.id), Value::Null));
    assert!(kernels.delete("mine").await.unwrap_err().message.contains("images: web-image"));
    // The same disk again is the same image: it goes on naming what it names, and nothing else is made of it by a promotion.
    for other in [json!({ "named": "other" }), json!("default")] {
        let error = promote(lab, json!({ "replace": true, "kernel": other })).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::FailedPrecondition, "{error}");
    }
    let set = json!({ "image": "web-image", "kernel": "other" });
    lab.call::<contract::image::SetKernel>(set, None).await.unwrap();
    let (again, left) = promoted(json!({ "replace": true })).await;
    assert_eq!((again.id, again.kernel.unwrap().id, left), (first.id, other.id, json!(mine.release)));

    // A VM that boots what its host was configured with, and one that boots what only its host has.
    lab.registry.put_vm("web", VmState::Stopped, json!({}));
    let (bare, left) = promoted(json!({ "name": "bare" })).await;
    assert_eq!((bare.kernel, left), (None, Value::Null));
    lab.registry.put_vm("web", VmState::Stopped, json!({ "kernel": "of-a-directory" }));
    let (local, left) = promoted(json!({ "name": "local" })).await;
    assert_eq!((local.kernel, left), (None, json!("of-a-directory")));

    // The VM went while it was promoted, and its kernel with it: the work is not lost.
    let vm = lab.registry.put_vm("web", VmState::Stopped, boots);
    lab.host.block(&source(vm));
    let slow = promote(lab, json!({ "wait": false, "name": "slow" })).await.unwrap().id;
    wait_until("the staging", BOUND, async || lab.host.staging().contains(&slow).then_some(())).await;
    kernels.delete("mine").await.unwrap();
    lab.host.release(&source(vm));
    let result = lab.ended(slow).await.result.unwrap();
    assert_eq!((&result["image"]["kernel"], &result["kernel_left_out"]), (&Value::Null, &json!(mine.release)));
    let error = promote(lab, json!({ "name": "no", "kernel": { "named": "mine" } })).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    for image in ["web-image", "bare", "local", "slow"] {
        lab.delete(image).await.unwrap();
    }
    kernels.delete("other").await.unwrap();
    kernels.assert_nothing_left().await;
    lab.assert_nothing_left().await;
}

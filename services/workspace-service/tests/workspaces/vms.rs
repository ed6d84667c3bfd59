//! VMs that stop, pause, restart or go under a transfer.

use contract::{
    ApiError, ErrorCode, OperationId, SessionId,
    operation::Cancel,
    vm::VmState,
    worktree::{Export, Prepare, Remove},
};
use serde_json::json;
use testkit::wait_until;

use crate::{
    client::*,
    common::{BOUND, Lab},
};

#[tokio::test]
async fn a_vm_that_stops_restarts_or_goes_ends_its_transfer_and_says_so() {
    let lab = Lab::start().await;
    let web = lab.id("web");
    let transfers = &lab.agent.transfers;

    // Its host tells.
    let held = Held::begun(&lab, "web").await;
    lab.set_state("web", VmState::Stopping);
    transfers.refuse(web, Some(ApiError::failed_precondition("vm stopped")));
    let error = failed(&lab, held.id).await;
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::FailedPrecondition, "vm stopped"));
    // Whether something is there, it could not say; it is asked when it runs.
    let row = listed(&lab).await.remove(0);
    assert_eq!((row.generation, row.unsettled), (None, Some(held.id)));
    transfers.lose_all();
    runs_again(&lab, "web").await;
    wait_until("the row's end", BOUND, async || listed(&lab).await.is_empty().then_some(())).await;

    // Its host says nothing, vm-lifecycle does.
    let held = Held::begun(&lab, "web").await;
    lab.set_state("web", VmState::Stopped);
    transfers.refuse(web, Some(ApiError::unavailable("the agent is away")));
    let error = failed(&lab, held.id).await;
    assert_eq!(
        (error.code, error.hint.as_deref()),
        (ErrorCode::FailedPrecondition, Some("`warren vm start web` starts it"))
    );
    lab.set_state("web", VmState::Running);
    transfers.refuse(web, None);

    // Another guest than the one that began.
    let held = Held::begun(&lab, "web").await;
    transfers.lose_all();
    let error = failed(&lab, held.id).await;
    assert!(error.code == ErrorCode::FailedPrecondition && error.message.contains("started anew"), "{error:?}");

    // Deleted, with a workspace that stood: its row goes too.
    prepare(&lab, "web", json!({}), b"tree").await;
    let held = Held::begun(&lab, "web").await;
    lab.delete("web");
    transfers.refuse(web, Some(ApiError::not_found("there is no such VM here")));
    let error = failed(&lab, held.id).await;
    assert!(error.code == ErrorCode::FailedPrecondition && error.message.contains("VM web was deleted"), "{error:?}");
    lab.bus.notify(format!("warren.event.vm.{web}.deleted")).await;
    wait_until("the row's end", BOUND, async || listed(&lab).await.is_empty().then_some(())).await;
    wait_until("its event", BOUND, async || (lab.events().await == ["prepared", "removed"]).then_some(())).await;
}

#[tokio::test]
async fn a_vm_that_does_not_run_is_refused_at_once_and_when_its_turn_comes() {
    let lab = Lab::start().await;
    prepare(&lab, "web", json!({}), b"tree").await;
    let held = Held::begun(&lab, "web").await;
    let queued = Held::ask(&lab, "web", json!({})).await.unwrap();
    lab.set_state("web", VmState::Paused);
    let upload = json!({ "vm": "web", "source": { "upload": { "session": SessionId::new() } } });
    refused::<Prepare>(&lab, upload, ErrorCode::FailedPrecondition, "paused").await;
    let export = json!({ "vm": "web", "session": SessionId::new() });
    refused::<Export>(&lab, export, ErrorCode::FailedPrecondition, "paused").await;
    refused::<Remove>(&lab, json!({ "vm": "web" }), ErrorCode::FailedPrecondition, "paused").await;
    lab.call::<Cancel>(json!({ "id": held.id })).await.unwrap();
    let error = failed(&lab, queued.id).await;
    assert!(error.code == ErrorCode::FailedPrecondition && error.message.contains("paused"), "{error:?}");
    assert!(!lab.agent.transfers.begun().contains(&queued.id));
    assert_eq!(listed(&lab).await.len(), 1, "what stood there stands");
}

/// The VM runs again, and its host takes commands.
async fn runs_again(lab: &Lab, name: &str) {
    lab.set_state(name, VmState::Running);
    lab.agent.transfers.refuse(lab.id(name), None);
    lab.bus.notify(format!("warren.event.vm.{}.running", lab.id(name))).await;
}

/// Prepares a tree whose VM stops when it stands, before anybody hears so.
async fn stops_when_placed(lab: &Lab) -> OperationId {
    let held = Held::begun(lab, "web").await;
    let id = held.id;
    lab.set_state("web", VmState::Stopped);
    lab.agent.transfers.refuse(lab.id("web"), Some(ApiError::failed_precondition("vm stopped")));
    held.send(b"tree").await;
    let error = failed(lab, id).await;
    assert_eq!((error.code, error.message.as_str()), (ErrorCode::FailedPrecondition, "vm stopped"));
    id
}

#[tokio::test]
async fn a_tree_that_stood_when_its_vm_stopped_is_a_workspace_when_it_runs_again() {
    let lab = Lab::start().await;
    let first = stops_when_placed(&lab).await;
    let row = listed(&lab).await.remove(0);
    assert_eq!((row.generation, row.unsettled), (None, Some(first)));
    runs_again(&lab, "web").await;
    wait_until("the workspace", BOUND, async || (listed(&lab).await[0].generation == Some(first)).then_some(())).await;
    let row = listed(&lab).await.remove(0);
    assert_eq!((row.unsettled, row.entries), (None, 1));

    // Over one that stood there; whoever comes next finds out, or did already.
    let second = stops_when_placed(&lab).await;
    let row = listed(&lab).await.remove(0);
    assert_eq!((row.generation, row.unsettled), (Some(first), Some(second)));
    runs_again(&lab, "web").await;
    let (_, changes) = export(&lab, "web", json!({})).await;
    assert_eq!(changes, b"tree");
    let row = listed(&lab).await.remove(0);
    assert_eq!((row.generation, row.unsettled), (Some(second), None));

    // A guest that did not come so far says so, and the next prepare begins with what is true.
    let held = Held::begun(&lab, "web").await;
    lab.set_state("web", VmState::Stopped);
    lab.agent.transfers.refuse(lab.id("web"), Some(ApiError::failed_precondition("vm stopped")));
    failed(&lab, held.id).await;
    runs_again(&lab, "web").await;
    let fourth = prepare(&lab, "web", json!({}), b"tree").await.id;
    let row = listed(&lab).await.remove(0);
    assert_eq!((row.generation, row.unsettled), (Some(fourth), None));
    let told = ["prepared", "prepared", "exported", "prepared"];
    wait_until("the events", BOUND, async || (lab.events().await == told).then_some(())).await;
}

#[tokio::test]
async fn a_workspace_that_was_forgotten_when_its_vm_stopped_is_gone_when_it_runs_again() {
    let lab = Lab::start().await;
    prepare(&lab, "web", json!({}), b"tree").await;
    lab.agent.transfers.stop_forgetting();
    let removal = lab.call::<Remove>(json!({ "vm": "web" })).await.unwrap().id;
    failed(&lab, removal).await;
    assert_eq!(listed(&lab).await[0].unsettled, Some(removal));
    runs_again(&lab, "web").await;
    wait_until("the row's end", BOUND, async || listed(&lab).await.is_empty().then_some(())).await;
    wait_until("its event", BOUND, async || (lab.events().await == ["prepared", "removed"]).then_some(())).await;
}

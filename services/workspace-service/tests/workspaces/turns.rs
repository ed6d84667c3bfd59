//! The turns of what is asked for: what follows what, and what holds nobody up.

use contract::{
    ErrorCode,
    operation::OperationState,
    vm::VmState,
    worktree::{Export, Get, Prepare},
};
use serde_json::json;

use crate::{client::*, common::Lab};

#[tokio::test]
async fn prepares_and_exports_of_one_vm_follow_each_other_and_hold_nobody_else() {
    let lab = Lab::start().await;
    lab.put("db", VmState::Running, "h1");
    prepare(&lab, "web", json!({}), b"first").await;
    let held = Held::begun(&lab, "web").await;
    let (session, mut exported) = listen(&lab).await;
    let export = lab.call::<Export>(json!({ "vm": "web", "session": session })).await.unwrap();
    let later = Held::ask(&lab, "web", json!({ "path": "/srv/other" })).await.unwrap();
    // Another VM's is not held up, and neither is a look.
    prepare(&lab, "db", json!({}), b"other").await;
    assert_eq!(lab.call::<Get>(json!({ "vm": "web", "path": "/workspace" })).await.unwrap().operation, Some(held.id));
    for queued in [export.id, later.id] {
        let waits = lab.call::<contract::operation::Get>(json!({ "id": queued })).await.unwrap();
        assert_eq!((waits.state, waits.waits_for), (OperationState::Queued, Some(held.id)));
        assert!(!lab.agent.transfers.begun().contains(&queued));
    }
    // The VM's own claim is free.
    let resources = "select count(*) from operations.operation where resource like 'vm:%'";
    assert_eq!(lab.sql().await.query_one(resources, &[]).await.unwrap().get::<_, i64>(0), 0);
    let (first, last) = (held.id, later.id);
    held.send(b"second").await;
    assert_eq!(read(&mut exported).await, b"second");
    later.send(b"third").await;
    for id in [first, export.id, last] {
        succeeded(lab.ended(id).await);
    }
    let begun = lab.agent.transfers.begun();
    let place = |id| begun.iter().position(|begun| *begun == id).unwrap();
    assert!(place(first) < place(export.id) && place(export.id) < place(last));
    // With two, a request has to say which.
    refused::<Get>(&lab, json!({ "vm": "web" }), ErrorCode::InvalidArgument, "/srv/other, /workspace").await;
}

#[tokio::test]
async fn the_same_request_key_is_the_same_prepare_whatever_becomes_of_the_vm() {
    let lab = Lab::start().await;
    let (session, stream) = listen(&lab).await;
    let request =
        serde_json::from_value(json!({ "vm": "web", "source": { "upload": { "session": session } } })).unwrap();
    let ask = async |request: &contract::worktree::PrepareRequest| {
        let options = bus::CallOptions { request_key: Some("once".into()), ..Default::default() };
        lab.bus.call_with::<Prepare>(request, options).await
    };
    let id = ask(&request).await.unwrap().id;
    Held { id, stream }.send(b"tree").await;
    succeeded(lab.ended(id).await);
    lab.delete("web");
    assert_eq!(ask(&request).await.unwrap().id, id);
    let other = contract::worktree::PrepareRequest { path: "/other".into(), ..request.clone() };
    lab.put("web", VmState::Running, "h1");
    assert_eq!(ask(&other).await.unwrap_err().code, ErrorCode::InvalidArgument);
}

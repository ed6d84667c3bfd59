//! Workspaces as clients see them: prepared, shown, listed, exported and removed.

use contract::{
    ErrorCode,
    worktree::{Get, List, Prepare, Remove, Workspace, Workspaces},
};
use serde_json::json;
use testkit::wait_until;

use crate::{
    client::*,
    common::{BOUND, Lab},
};

#[tokio::test]
async fn a_tree_is_prepared_shown_exported_and_removed() {
    let lab = Lab::start().await;
    let about =
        json!({ "origin": "/home/ann/app", "branch": "main", "head": "a".repeat(40), "history": { "depth": 3 } });
    let held = {
        let (session, stream) = listen(&lab).await;
        let request = json!({
            "vm": "web", "path": "//srv/app/", "owner": "1000:100", "force": true, "clean": true, "placing": "in_place",
            "source": { "upload": { "session": session, "about": about } },
        });
        Held { id: lab.call::<Prepare>(request).await.unwrap().id, stream }
    };
    let id = held.id;
    held.send(b"a tree").await;
    let ended = succeeded(lab.ended(id).await);
    let result = ended.result.unwrap();
    assert_eq!((&result["summary"]["bytes"], &result["workspace"]["path"]), (&json!(6), &json!("/srv/app")));
    assert_eq!(ended.steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>(), ["check", "begin", "transfer"]);
    let order = lab.agent.transfers.imports().remove(0);
    assert_eq!((order.operation, order.path.as_str(), order.owner.as_deref()), (id, "/srv/app", Some("1000:100")));
    assert!(order.force && order.clean && order.epoch > 0 && order.about.branch.as_deref() == Some("main"));

    let shown = lab.call::<Get>(json!({ "vm": "web" })).await.unwrap();
    assert_eq!((shown.vm, shown.generation, shown.bytes), (lab.id("web"), Some(id), 6));
    assert_eq!((json!(shown.about), shown.exported_at), (about, None));
    assert_eq!(lab.call::<Get>(json!({ "vm": lab.id("web"), "path": "/srv/app/." })).await.unwrap(), shown);
    assert_eq!(listed(&lab).await, std::slice::from_ref(&shown));

    let (_, changes) = export(&lab, "web", json!({})).await;
    assert_eq!(changes, b"a tree");
    let (advancing, _) = export(&lab, "web", json!({ "path": "/srv/app", "advance": true, "commits": true })).await;
    let now = lab.call::<Get>(json!({ "vm": "web" })).await.unwrap();
    assert!(now.exported_at.is_some() && now.generation == Some(advancing.id) && now.id == shown.id);
    prepare(&lab, "web", json!({ "path": "/srv/app" }), b"").await;
    assert_eq!(listed(&lab).await.len(), 1);

    let removed = json!({ "vm": "web", "keep_files": true, "wait": true });
    succeeded(lab.call::<Remove>(removed.clone()).await.unwrap());
    assert!(lab.agent.transfers.forgotten()[0].keep_files && lab.agent.transfers.tree(lab.id("web")).is_none());
    refused::<Remove>(&lab, removed, ErrorCode::NotFound, "no workspace").await;
    refused::<Get>(&lab, json!({ "vm": "web", "path": "/srv/app" }), ErrorCode::NotFound, "no workspace at").await;
    let told = ["prepared", "exported", "exported", "prepared", "removed"];
    wait_until("the events", BOUND, async || (lab.events().await == told).then_some(())).await;
}

#[tokio::test]
async fn workspaces_are_listed_in_pages_under_their_vms_names_and_never_lie_within_each_other() {
    let lab = Lab::start().await;
    for path in ["/srv/a", "/srv/b", "/srv/c"] {
        prepare(&lab, "web", json!({ "path": path }), b"tree").await;
    }
    for path in ["/srv/a/deep", "/srv/a/deep/er"] {
        let held = Held::ask(&lab, "web", json!({ "path": path })).await.unwrap();
        assert!(failed(&lab, held.id).await.message.contains("/srv/a lie within"));
    }
    let mut seen: Vec<Workspace> = Vec::new();
    loop {
        let after = seen.last().map(|last| last.id);
        let page = lab.call::<List>(json!({ "vm": "web", "limit": 2, "after": after })).await.unwrap();
        let Workspaces { workspaces, more } = page;
        assert!(workspaces.len() <= 2);
        seen.extend(workspaces);
        if !more {
            break;
        }
    }
    assert_eq!(seen.iter().map(|w| w.path.as_str()).collect::<Vec<_>>(), ["/srv/a", "/srv/b", "/srv/c"]);
    lab.rename("web", "shop");
    lab.bus.notify(format!("warren.event.vm.{}.changed", lab.id("shop"))).await;
    wait_until("the name", BOUND, async || {
        listed(&lab).await.iter().all(|workspace| workspace.vm_name.as_str() == "shop").then_some(())
    })
    .await;
}

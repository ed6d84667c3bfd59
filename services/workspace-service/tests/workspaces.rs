//! Stories of workspaces, as a client on NATS sees them: what is prepared, exported and removed, what follows what, and who ends it.

mod common;

use std::{path::Path, process::Stdio, time::Duration};

use bus::ByteStream;
use bytes::{Bytes, BytesMut};
use common::{BOUND, Lab, fake_transfers::say};
use contract::{
    ApiError, ErrorCode, OperationId, SessionId, Verb,
    frame::{Exit, Frame},
    operation::{Cancel, Operation, OperationState},
    vm::VmState,
    worktree::{Export, Get, List, Prepare, Remove, Workspace, Workspaces},
};
use serde_json::{Value, json};
use testkit::wait_until;
use tokio::{io::AsyncReadExt, process::Command};
use workspace_service::Server;

/// A prepare whose client has not sent anything yet.
struct Held {
    id: OperationId,
    stream: ByteStream,
}

impl Held {
    /// Asks for it.
    async fn ask(lab: &Lab, vm: &str, more: Value) -> Result<Self, ApiError> {
        let (session, stream) = listen(lab).await;
        let mut request = json!({ "vm": vm, "source": { "upload": { "session": session } } });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let id = lab.call::<Prepare>(request).await?.id;
        Ok(Self { id, stream })
    }

    /// Asks, and waits until the host has begun.
    async fn begun(lab: &Lab, vm: &str) -> Self {
        let held = Self::ask(lab, vm, json!({})).await.unwrap();
        wait_until("the transfer", BOUND, async || lab.agent.transfers.begun().contains(&held.id).then_some(())).await;
        held
    }

    /// Sends the tree.
    async fn send(mut self, tree: &'static [u8]) {
        let frames = [Frame::Stdin(Bytes::from_static(tree)), Frame::Stdin(Bytes::new())];
        say(&mut self.stream, &frames).await.unwrap();
        assert_eq!(read(&mut self.stream).await, b"");
    }
}

async fn listen(lab: &Lab) -> (SessionId, ByteStream) {
    let session = SessionId::new();
    (session, ByteStream::open_within(&lab.bus, session, BOUND).await.unwrap())
}

/// What a guest sends until it says that it has ended well.
async fn read(stream: &mut ByteStream) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), BytesMut::new());
    loop {
        match Frame::decode(&mut buffer).unwrap() {
            Some(Frame::Stdout(data)) => all.extend_from_slice(&data),
            Some(Frame::Exit(Exit { code: 0, .. })) => return all,
            Some(other) => panic!("{other:?}"),
            None => assert_ne!(stream.read_buf(&mut buffer).await.unwrap(), 0),
        }
    }
}

async fn prepare(lab: &Lab, vm: &str, more: Value, tree: &'static [u8]) -> Operation {
    let held = Held::ask(lab, vm, more).await.unwrap();
    let id = held.id;
    held.send(tree).await;
    succeeded(lab.ended(id).await)
}

fn succeeded(operation: Operation) -> Operation {
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    operation
}

async fn export(lab: &Lab, vm: &str, more: Value) -> (Operation, Vec<u8>) {
    let (session, mut stream) = listen(lab).await;
    let mut request = json!({ "vm": vm, "session": session });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let id = lab.call::<Export>(request).await.unwrap().id;
    let changes = read(&mut stream).await;
    (succeeded(lab.ended(id).await), changes)
}

async fn failed(lab: &Lab, id: OperationId) -> ApiError {
    let ended = lab.ended(id).await;
    assert_eq!(ended.state, OperationState::Failed, "{ended:?}");
    ended.error.unwrap()
}

async fn listed(lab: &Lab) -> Vec<Workspace> {
    lab.call::<List>(json!({})).await.unwrap().workspaces
}

async fn refused<V: Verb<Reply: std::fmt::Debug>>(lab: &Lab, request: Value, code: ErrorCode, word: &str) {
    let error = lab.call::<V>(request.clone()).await.unwrap_err();
    assert_eq!(error.code, code, "{request}: {error:?}");
    assert!(error.message.contains(word), "{request}: {}", error.message);
}

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
    assert!(listed(&lab).await.is_empty(), "nothing was ever there");
    lab.set_state("web", VmState::Running);
    transfers.refuse(web, None);

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

#[tokio::test]
async fn a_cancel_and_a_client_that_vanishes_end_a_transfer() {
    let lab = Lab::start().await;
    let held = Held::begun(&lab, "web").await;
    let mut stream = held.stream;
    lab.call::<Cancel>(json!({ "id": held.id })).await.unwrap();
    assert_eq!(lab.ended(held.id).await.state, OperationState::Cancelled);
    assert!(lab.agent.transfers.aborted().iter().all(|aborted| *aborted == held.id));
    assert!(listed(&lab).await.is_empty());
    // What comes too late is nobody's.
    drop(say(&mut stream, &[Frame::Stdin(Bytes::new())]).await);

    let Held { id, stream } = Held::begun(&lab, "web").await;
    drop(stream);
    let error = failed(&lab, id).await;
    assert!(error.message.contains("the client is gone"), "{error:?}");
    prepare(&lab, "web", json!({}), b"tree").await;
}

#[tokio::test]
async fn a_tree_that_stood_before_the_cancel_came_is_prepared() {
    let lab = Lab::start().await;
    lab.agent.transfers.be_late();
    let held = Held::begun(&lab, "web").await;
    lab.call::<Cancel>(json!({ "id": held.id })).await.unwrap();
    succeeded(lab.ended(held.id).await);
    let listed = listed(&lab).await;
    assert_eq!((listed[0].generation, listed[0].entries), (Some(held.id), 7), "{listed:?}");
}

#[tokio::test]
async fn a_tree_that_stood_before_its_host_was_given_up_is_a_workspace() {
    let mut lab = Lab::engines().await;
    let mut config = lab.config();
    config.patience = Duration::from_secs(1);
    lab.server = Some(Server::start(config).await.unwrap());
    lab.agent.transfers.be_late();
    let (web, held) = (lab.id("web"), Held::begun(&lab, "web").await);
    lab.agent.transfers.refuse(web, Some(ApiError::unavailable("the agent is away")));
    wait_until("the undo", BOUND, async || {
        let operation = lab.call::<contract::operation::Get>(json!({ "id": held.id })).await.ok()?;
        (operation.phase == "undo").then_some(())
    })
    .await;
    lab.agent.transfers.refuse(web, None);
    failed(&lab, held.id).await;
    assert_eq!(listed(&lab).await[0].generation, Some(held.id));
}

#[tokio::test]
async fn a_host_that_is_silent_for_too_long_ends_a_transfer_and_one_that_comes_back_does_not() {
    let mut lab = Lab::engines().await;
    let mut config = lab.config();
    config.patience = Duration::from_secs(2);
    lab.server = Some(Server::start(config).await.unwrap());
    let web = lab.id("web");
    let away = || Some(ApiError::unavailable("the agent is away"));
    let held = Held::begun(&lab, "web").await;
    lab.agent.transfers.refuse(web, away());
    wait_until("the undo", BOUND, async || {
        let operation = lab.call::<contract::operation::Get>(json!({ "id": held.id })).await.ok()?;
        (operation.phase == "undo").then_some(())
    })
    .await;
    // What the host could not be told is tried again until it is back.
    lab.agent.transfers.refuse(web, None);
    let error = failed(&lab, held.id).await;
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    assert!(error.message.contains("host of VM web was silent for 2 s"), "{}", error.message);
    assert_eq!(lab.agent.transfers.aborted(), [held.id]);
    let held = Held::begun(&lab, "web").await;
    lab.agent.transfers.refuse(web, away());
    let (id, before) = (held.id, lab.agent.transfers.refused());
    wait_until("a question", BOUND, async || (lab.agent.transfers.refused() > before).then_some(())).await;
    lab.agent.transfers.refuse(web, None);
    held.send(b"tree").await;
    succeeded(lab.ended(id).await);
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

#[tokio::test]
async fn what_cannot_be_is_refused_before_anybody_is_asked() {
    let lab = Lab::start().await;
    let prepare = |more: Value| {
        let mut request = json!({ "vm": "web", "source": { "upload": { "session": SessionId::new() } } });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    for (more, word) in [
        (json!({ "path": "/etc/passwd" }), "directory of the system"),
        (json!({ "path": "/srv/../../etc" }), ".."),
        (json!({ "path": "relative" }), "absolute"),
        (json!({ "owner": "-x" }), "owner"),
        (json!({ "timeout_ms": 0 }), "timeout_ms"),
        (json!({ "timeout_ms": 600_001 }), "timeout_ms"),
        (json!({ "source": { "git": { "url": "ext::sh -c id" } } }), "git URL"),
        (json!({ "source": { "git": { "url": "https://ann:pw@h/x" } } }), "credentials"),
        (json!({ "source": { "host": { "path": "/srv/.." } } }), "no directory of a host"),
        (json!({ "source": { "object": "x" } }), "no object"),
    ] {
        refused::<Prepare>(&lab, prepare(more), ErrorCode::InvalidArgument, word).await;
    }
    refused::<Prepare>(&lab, prepare(json!({ "vm": "nope" })), ErrorCode::NotFound, "no VM").await;
    let export = json!({ "vm": "web", "session": SessionId::new() });
    refused::<Export>(&lab, export, ErrorCode::NotFound, "no workspace").await;
    let none = json!({ "vm": "web", "session": SessionId::new(), "max_entries": 0 });
    refused::<Export>(&lab, none, ErrorCode::InvalidArgument, "max_entries").await;
    refused::<List>(&lab, json!({ "limit": 1001 }), ErrorCode::InvalidArgument, "limit").await;
    assert_eq!(lab.agent.transfers.orders(), 0);

    // A host's directory is the host's to allow.
    let id = lab.call::<Prepare>(prepare(json!({ "source": { "host": { "path": "/srv/x" } } }))).await.unwrap().id;
    assert_eq!(failed(&lab, id).await.code, ErrorCode::PermissionDenied);
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

/// Runs the service as a process that dies at a point.
async fn replica(lab: &Lab, fault: &str, mark: &Path) -> tokio::process::Child {
    let child = Command::new(env!("CARGO_BIN_EXE_workspace-service"))
        .env("WARREN_NATS_URL", lab.nats.url())
        .env("WARREN_DATABASE_URL", lab.postgres.url())
        .env("WARREN_FAULT", fault)
        .env("WARREN_FAULT_MARK", mark)
        .env("RUST_LOG", "warn")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // NATS may not have noticed yet that the one before is dead, and give it the question.
    let options = || bus::CallOptions { timeout: Some(Duration::from_secs(1)), ..Default::default() };
    let request = contract::worktree::ListRequest::default();
    wait_until("the service", BOUND, async || lab.bus.call_with::<List>(&request, options()).await.ok()).await;
    child
}

#[tokio::test]
async fn a_worker_that_dies_is_replaced_by_one_that_watches_the_same_transfer() {
    let lab = Lab::engines().await;
    let dir = tempfile::tempdir().unwrap();
    for (n, fault) in [
        "workspace.prepare/check/recorded",
        "workspace.prepare/begin/after",
        "workspace.prepare/begin/recorded",
        "workspace.prepare/transfer/placed",
        "workspace.prepare/transfer/after",
    ]
    .into_iter()
    .enumerate()
    {
        let mark = dir.path().join(n.to_string());
        let mut doomed = replica(&lab, fault, &mark).await;
        let held = Held::ask(&lab, "web", json!({})).await.unwrap();
        let id = held.id;
        // It may die before it is sent anything, or only afterwards.
        let sending = tokio::spawn(held.send(b"tree"));
        let died =
            tokio::time::timeout(BOUND, doomed.wait()).await.unwrap_or_else(|_| panic!("{fault} was not reached"));
        assert!(!died.unwrap().success() && mark.exists());
        let expire =
            "update operations.operation set lease_until = now() - interval '1 second' where state = 'running'";
        lab.sql().await.execute(expire, &[]).await.unwrap();
        let mut heir = replica(&lab, fault, &mark).await;
        sending.await.unwrap();
        let ended = succeeded(lab.ended(id).await);
        assert_eq!(ended.attempts, 2, "{fault}");
        assert_eq!(lab.call::<Get>(json!({ "vm": "web" })).await.unwrap().generation, Some(id), "{fault}");
        heir.kill().await.unwrap();
    }
    assert_eq!(lab.agent.transfers.begun().len(), 5, "each transfer began once");
    let _last = replica(&lab, "", &dir.path().join("none")).await;
    wait_until("the events", BOUND, async || (lab.events().await == ["prepared"; 5]).then_some(())).await;
}

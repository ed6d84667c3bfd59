//! Workers that die, and those who take over.

use std::{path::Path, process::Stdio, time::Duration};

use contract::{
    OperationId,
    operation::{Cancel, OperationState},
    worktree::{Get, List, Prepare},
};
use serde_json::{Value, json};
use testkit::wait_until;
use tokio::process::Command;

use crate::{
    client::*,
    common::{BOUND, Lab},
};

/// Runs the service as a process that dies at a point.
async fn replica(lab: &Lab, fault: &str, mark: &Path) -> tokio::process::Child {
    let child = Command::new(env!("CARGO_BIN_EXE_workspace-service"))
        .env("WARREN_NATS_URL", lab.nats.url())
        .env("WARREN_DATABASE_URL", lab.postgres.url())
        .env("WARREN_FAULT", fault)
        .env("WARREN_FAULT_MARK", mark)
        .env("WARREN_GIT_CACHE", mark.with_file_name("cache"))
        .env("WARREN_GIT_ALLOW_FILE", "true")
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

/// What time does in fifteen seconds: a dead worker's lease runs out.
async fn expire(lab: &Lab) {
    let expire = "update operations.operation set lease_until = now() - interval '1 second' where state = 'running'";
    lab.sql().await.execute(expire, &[]).await.unwrap();
}

#[tokio::test]
async fn a_worker_that_dies_is_replaced_by_one_that_watches_the_same_transfer() {
    let lab = Lab::engines().await;
    let dir = tempfile::tempdir().unwrap();
    for (n, fault) in [
        "workspace.prepare/check/recorded",
        "workspace.prepare/begin/noted",
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
        expire(&lab).await;
        let mut heir = replica(&lab, fault, &mark).await;
        sending.await.unwrap();
        let ended = succeeded(lab.ended(id).await);
        assert_eq!(ended.attempts, 2, "{fault}");
        assert_eq!(lab.call::<Get>(json!({ "vm": "web" })).await.unwrap().generation, Some(id), "{fault}");
        heir.kill().await.unwrap();
    }
    assert_eq!(lab.agent.transfers.begun().len(), 6, "each transfer began once");
    let _last = replica(&lab, "", &dir.path().join("none")).await;
    wait_until("the events", BOUND, async || (lab.events().await == ["prepared"; 6]).then_some(())).await;
}

#[tokio::test]
async fn what_a_dead_worker_began_and_did_not_record_is_ended_when_its_heir_finds_a_cancel() {
    let lab = Lab::engines().await;
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("mark");
    let mut doomed = replica(&lab, "workspace.prepare/begin/after", &mark).await;
    let held = Held::ask(&lab, "web", json!({})).await.unwrap();
    tokio::time::timeout(BOUND, doomed.wait()).await.unwrap().unwrap();
    let cancel = "update operations.operation set cancel_requested = true where state = 'running'";
    lab.sql().await.execute(cancel, &[]).await.unwrap();
    expire(&lab).await;
    let _heir = replica(&lab, "", &mark).await;
    assert_eq!(lab.ended(held.id).await.state, OperationState::Cancelled);
    assert!(lab.agent.transfers.aborted().contains(&held.id));
    assert!(listed(&lab).await.is_empty());
}

/// A repository of one commit, as a source.
fn repository(dir: &Path) -> Value {
    let git = |args: &[&str]| {
        let mut command = std::process::Command::new("git");
        let who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"];
        assert!(command.current_dir(dir).args(who).args(args).status().unwrap().success());
    };
    git(&["init", "-q"]);
    std::fs::write(dir.join("file"), "text").unwrap();
    git(&["add", "."]);
    git(&["commit", "-qm", "one"]);
    json!({ "git": { "url": format!("file://{}", dir.display()) } })
}

/// Waits for the `n`th transfer.
async fn begun(lab: &Lab, n: usize) -> OperationId {
    wait_until("the transfer", BOUND, async || lab.agent.transfers.begun().get(n).copied()).await
}

#[tokio::test]
async fn a_served_tree_that_stands_is_a_workspace_whoever_died_and_whether_or_not_it_was_cancelled() {
    let lab = Lab::engines().await;
    let (dir, repo) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mark, source) = (dir.path().join("none"), repository(repo.path()));
    let ask = async || lab.call::<Prepare>(json!({ "vm": "web", "source": source })).await.unwrap().id;

    // It stands when its sender dies: the heir sends nothing.
    let mut first = replica(&lab, "", &mark).await;
    let id = ask().await;
    assert_eq!(begun(&lab, 0).await, id);
    first.kill().await.unwrap();
    lab.agent.transfers.place(id);
    expire(&lab).await;
    let mut second = replica(&lab, "", &mark).await;
    succeeded(lab.ended(id).await);
    let workspace = listed(&lab).await.remove(0);
    assert_eq!((workspace.generation, workspace.entries, lab.agent.transfers.begun().len()), (Some(id), 7, 1));
    assert!(workspace.about.head.is_some(), "{workspace:?}");

    // What the heir of another one sent stands when it dies too, and then a cancel comes.
    let id = ask().await;
    assert_eq!(begun(&lab, 1).await, id);
    second.kill().await.unwrap();
    expire(&lab).await;
    let mut third = replica(&lab, "", &mark).await;
    let heirs = begun(&lab, 2).await;
    assert_ne!(heirs, id);
    third.kill().await.unwrap();
    lab.agent.transfers.place(heirs);
    let _fourth = replica(&lab, "", &mark).await;
    lab.call::<Cancel>(json!({ "id": id })).await.unwrap();
    expire(&lab).await;
    assert_eq!(lab.ended(id).await.state, OperationState::Cancelled);
    assert_eq!(listed(&lab).await[0].generation, Some(heirs));
}

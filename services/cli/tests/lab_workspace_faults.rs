//! What becomes of workspaces when something goes wrong under a transfer: a VM that is paused, stopped or deleted, and a guest-agent that is
//! killed. And directories of a host, which only its operator lets into VMs.

mod common;

use std::{fs, path::Path, time::Duration};

use bus::{Bus, BusConfig, ByteStream};
use common::{busybox_layout, lab_or_skip, refused};
use contract::{
    OperationId, SessionId,
    operation::{self, Operation, OperationRef, OperationState},
    worktree::{Get, Prepare, PrepareRequest, Workspace, WorkspaceRef},
};
use serde_json::json;
use testkit::{
    lab::{Lab, LabOptions},
    wait_until,
};

const BOUND: Duration = Duration::from_secs(60);

async fn guest(lab: &Lab, command: &str) -> String {
    lab.must(&["exec", "web", "--", "sh", "-ec", command]).await.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_is_what_it_was_whatever_becomes_of_its_vm_under_a_transfer() {
    let shared = tempfile::tempdir().unwrap();
    let env = [("WARREN_WORKSPACE_DIRS".to_owned(), shared.path().display().to_string())].into();
    let Some(lab) = lab_or_skip(LabOptions { env, ..LabOptions::default() }).await else { return };
    let bus = Bus::connect(&BusConfig::new(lab.nats.url(), "test")).await.unwrap();
    let layout = busybox_layout(&lab.scratch());
    lab.must(&["image", "pull", &layout, "--layout", "--name", "bb"]).await;
    lab.must(&["vm", "create", "web", "--image", "bb", "--memory", "128M", "--disk", "128M"]).await;
    directory_of_a_host(&lab, shared.path()).await;
    paused(&lab).await;
    agent_killed(&lab, &bus).await;
    stopped(&lab, &bus).await;
    deleted(&lab, &bus).await;
    assert_eq!(lab.residue().await, Vec::<String>::new());
}

/// One below what the operator named goes in; none beside it, and none that a link leads to.
async fn directory_of_a_host(lab: &Lab, shared: &Path) {
    let project = shared.join("project");
    fs::create_dir_all(project.join("deep")).unwrap();
    fs::write(project.join("deep/file"), "of the host\n").unwrap();
    std::os::unix::fs::symlink("/etc", shared.join("link")).unwrap();
    let of_host = |path: &Path| format!("host:{}", path.display());
    lab.must(&["workspace", "prepare", "web", &of_host(&project)]).await;
    assert_eq!(guest(lab, "cat /workspace/deep/file").await, "of the host");
    refused(lab, &["workspace", "prepare", "web", "host:/etc"], "permission_denied", 8).await;
    refused(lab, &["workspace", "prepare", "web", &of_host(&shared.join("link"))], "invalid_argument", 2).await;
    // What changed there comes back by the same way as from any workspace.
    guest(lab, "echo changed > /workspace/deep/file").await;
    assert_eq!(lab.must(&["workspace", "diff", "web", "--name-only"]).await, "M deep/file\n");
    let error = refused(lab, &["workspace", "prepare", "web", &of_host(&project)], "failed_precondition", 5).await;
    assert!(error["error"]["message"].as_str().unwrap().contains("never exported"), "{error}");
    lab.must(&["workspace", "prepare", "web", &of_host(&project), "--force"]).await;
}

/// A guest that stands still takes nothing and gives nothing.
async fn paused(lab: &Lab) {
    let here = lab.scratch().display().to_string();
    lab.must(&["vm", "pause", "web"]).await;
    let export = lab.scratch().join("never.tar").display().to_string();
    for args in [
        &["workspace", "prepare", "web", &here][..],
        &["workspace", "export", "web", "--format", "tar", "--file", &export],
        &["workspace", "rm", "web"],
    ] {
        let error = refused(lab, args, "failed_precondition", 5).await;
        assert!(error["error"]["message"].as_str().unwrap().contains("paused"), "{args:?}: {error}");
        assert!(error["error"]["hint"].as_str().unwrap().contains("resume"), "{args:?}: {error}");
    }
    lab.must(&["vm", "resume", "web"]).await;
    assert_eq!(guest(lab, "cat /workspace/deep/file").await, "of the host");
}

/// A prepare that the guest has begun, and whose client sends nothing.
async fn held(lab: &Lab, bus: &Bus) -> (OperationId, ByteStream) {
    let session = SessionId::new();
    let stream = ByteStream::open_within(bus, session, BOUND).await.unwrap();
    let request = json!({ "vm": "web", "source": { "upload": { "session": session } } });
    let request: PrepareRequest = serde_json::from_value(request).unwrap();
    let id = bus.call::<Prepare>(&request).await.unwrap().id;
    wait_until("the transfer", BOUND, async || {
        let now = look(bus, id).await;
        assert!(!now.state.is_final(), "{now:?}\n{}", lab.tails());
        now.steps.iter().any(|step| step.name == "begin").then_some(())
    })
    .await;
    (id, stream)
}

async fn look(bus: &Bus, id: OperationId) -> Operation {
    bus.call::<operation::Get>(&OperationRef { id }).await.unwrap()
}

/// How a prepare failed.
async fn failure(bus: &Bus, id: OperationId) -> String {
    let ended = wait_until("the operation's end", BOUND, async || {
        Some(look(bus, id).await).filter(|operation| operation.state.is_final())
    });
    let ended = ended.await;
    assert_eq!(ended.state, OperationState::Failed, "{ended:?}");
    ended.error.unwrap().message
}

async fn shown(bus: &Bus) -> Workspace {
    bus.call::<Get>(&WorkspaceRef { vm: "web".into(), path: None }).await.unwrap()
}

/// Its guest-agent dies in the middle: the old tree stays, the error says why, and a repeat works.
async fn agent_killed(lab: &Lab, bus: &Bus) {
    let before = shown(bus).await;
    let (id, _stream) = held(lab, bus).await;
    // The agent's command line begins with an @; process 1's does not.
    let kill = "kill -9 $(grep -l '^@' /proc/[0-9]*/cmdline | cut -d/ -f3); sleep 1000";
    lab.warren(&["exec", "web", "--", "sh", "-c", kill]).await;
    let message = failure(bus, id).await;
    assert!(message.contains("started anew") || message.contains("gone") || message.contains("ended"), "{message}");
    assert_eq!(guest(lab, "cat /workspace/deep/file").await, "of the host");
    let after = shown(bus).await;
    assert_eq!((after.generation, after.unsettled), (before.generation, None));
    repeated(lab, "after the agent").await;
}

/// A prepare as usual.
async fn repeated(lab: &Lab, text: &str) {
    let dir = lab.scratch().join(text);
    fs::create_dir_all(dir.join("deep")).unwrap();
    fs::write(dir.join("deep/file"), text).unwrap();
    lab.must(&["workspace", "prepare", "web", &dir.display().to_string()]).await;
    assert_eq!(guest(lab, "cat /workspace/deep/file").await, text);
}

/// A stop does not wait for the client that sends nothing, and the tree is what it was when the VM runs again.
async fn stopped(lab: &Lab, bus: &Bus) {
    let before = shown(bus).await;
    let (id, _stream) = held(lab, bus).await;
    lab.must(&["vm", "stop", "web"]).await;
    let message = failure(bus, id).await;
    assert!(message.contains("stop"), "{message}");
    refused(lab, &["workspace", "prepare", "web", "."], "failed_precondition", 5).await;
    lab.must(&["vm", "start", "web"]).await;
    assert_eq!(guest(lab, "cat /workspace/deep/file").await, "after the agent");
    wait_until("what became of it", BOUND, async || shown(bus).await.unsettled.is_none().then_some(())).await;
    assert_eq!(shown(bus).await.generation, before.generation);
    repeated(lab, "after the stop").await;
}

/// So it is with a delete, and the workspace goes too.
async fn deleted(lab: &Lab, bus: &Bus) {
    let (id, _stream) = held(lab, bus).await;
    lab.must(&["vm", "rm", "web", "--force"]).await;
    let message = failure(bus, id).await;
    assert!(message.contains("delet") || message.contains("stop"), "{message}");
    wait_until("the workspaces' end", BOUND, async || {
        let listed: serde_json::Value =
            serde_json::from_str(&lab.must(&["workspace", "ls", "-o", "json"]).await).unwrap();
        listed["workspaces"].as_array().unwrap().is_empty().then_some(())
    })
    .await;
}

//! Ctrl-C at moments that no real lab offers for sure: the services here are played, and end their operations when the story says so.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use bus::{Bus, BusConfig, Service};
use contract::{
    ApiError, OperationId, VmId,
    operation::{self, Operation, OperationRef, OperationState, WaitRequest},
    vm::{self, CreateRequest, LifecycleRequest, VmRef},
    workspace::{self, OpenRequest},
    worktree::{Prepare, PrepareRequest},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use testkit::Nats;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::watch,
};

const BOUND: Duration = Duration::from_secs(60);

/// What becomes of an operation that is called off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cancelled {
    /// It had succeeded just before.
    TooLate,
    /// It ends.
    InTime,
    /// Nobody hears of its end.
    Silence,
}

/// What was asked of the services, as `verb` or `verb name`.
#[derive(Clone)]
struct Asked(watch::Sender<Vec<String>>);

impl Asked {
    fn note(&self, what: impl Into<String>) {
        self.0.send_modify(|all| all.push(what.into()));
    }

    async fn wait(&self, what: &str) {
        let mut all = self.0.subscribe();
        let seen = all.wait_for(|all| all.iter().any(|one| one == what));
        tokio::time::timeout(BOUND, seen).await.unwrap_or_else(|_| panic!("nobody asked {what}")).unwrap();
    }
}

/// The one operation under way, and how it is told of.
type Running = Arc<watch::Sender<Operation>>;

/// Services that answer as a story wants it.
struct World {
    nats: Nats,
    asked: Asked,
    vm: VmId,
    home: tempfile::TempDir,
    _services: Vec<Service>,
}

fn operation(kind: &str, resource: &str, state: &str) -> Operation {
    serde_json::from_value(json!({
        "id": OperationId::new(), "kind": kind, "resource": resource, "state": state, "phase": "transfer", "request": {},
        "epoch": 1, "attempts": 1, "created_at": "2026-01-01T00:00:00Z",
    }))
    .unwrap()
}

async fn world(cancelled: Cancelled) -> World {
    let nats = Nats::start().await;
    let bus = Bus::connect(&BusConfig::new(nats.url(), "played")).await.unwrap();
    let (asked, vm) = (Asked(watch::channel(Vec::new()).0), VmId::new());
    let running: Running = Arc::new(watch::channel(operation("none", "vm:none", "succeeded")).0);
    let service = bus.service("workspace-service", "0.1.0", "played").await.unwrap();
    let (note, current, resource) = (asked.clone(), running.clone(), format!("workspace:{vm}"));
    service
        .serve::<Prepare, _>(move |_, _: PrepareRequest| {
            let begun = operation("workspace.prepare", &resource, "running");
            current.send_replace(begun.clone());
            note.note("prepare");
            async move { Ok(begun) }
        })
        .await
        .unwrap();
    let note = asked.clone();
    service
        .serve::<workspace::Open, _>(move |_, _: OpenRequest| {
            note.note("open");
            std::future::pending::<Result<_, ApiError>>()
        })
        .await
        .unwrap();
    operations(&service, &asked, &running, cancelled).await;
    let lifecycle = bus.service("vm-lifecycle", "0.1.0", "played").await.unwrap();
    vms(&lifecycle, &asked, &running, vm).await;
    service.ready().await.unwrap();
    World { nats, asked, vm, home: tempfile::tempdir().unwrap(), _services: vec![service, lifecycle] }
}

async fn operations(service: &Service, asked: &Asked, running: &Running, cancelled: Cancelled) {
    let (note, current) = (asked.clone(), running.clone());
    service
        .serve::<operation::Wait, _>(move |_, _: WaitRequest| {
            note.note("wait");
            let mut now = current.subscribe();
            async move { Ok(now.wait_for(|now| now.state.is_final()).await.unwrap().clone()) }
        })
        .await
        .unwrap();
    let current = running.clone();
    service
        .serve::<operation::Get, _>(move |_, _: OperationRef| {
            let now = current.borrow().clone();
            async move { Ok(now) }
        })
        .await
        .unwrap();
    let (note, current) = (asked.clone(), running.clone());
    service
        .serve::<operation::Cancel, _>(move |_, _: OperationRef| {
            current.send_modify(|now| match cancelled {
                Cancelled::TooLate => {
                    now.state = OperationState::Succeeded;
                    now.result =
                        Some(json!({ "summary": { "entries": 2, "bytes": 4, "moved_files": 1, "moved_bytes": 4 } }));
                }
                Cancelled::InTime => now.state = OperationState::Cancelled,
                Cancelled::Silence => now.cancel_requested = true,
            });
            note.note("cancel");
            let late = cancelled == Cancelled::TooLate;
            let now = current.borrow().clone();
            async move { if late { Err(ApiError::failed_precondition("it has ended")) } else { Ok(now) } }
        })
        .await
        .unwrap();
}

async fn vms(service: &Service, asked: &Asked, running: &Running, id: VmId) {
    service
        .serve::<vm::Get, _>(move |_, _: VmRef| async move {
            Ok(serde_json::from_value(json!({
                "id": id, "name": "web", "state": "running", "host": "local", "host_down": false,
                "image": "0190a1b2-0000-7000-8000-000000000002", "image_name": "debian", "cpus": 1, "memory": 256,
                "disk": 2048, "address": "10.77.0.2", "mac": "02:00:00:00:00:01", "fqdn": "web.warren",
                "created_at": "2026-01-01T00:00:00Z", "ready_at": null,
            }))
            .unwrap())
        })
        .await
        .unwrap();
    let current = running.clone();
    service
        .serve::<vm::Create, _>(move |_, _: CreateRequest| {
            let created = operation("vm.create", &format!("vm:{id}"), "succeeded");
            current.send_replace(created.clone());
            async move { Ok(created) }
        })
        .await
        .unwrap();
    let note = asked.clone();
    service
        .serve::<vm::Delete, _>(move |_, request: LifecycleRequest| {
            note.note(format!("delete {}", request.vm));
            async move { Ok(operation("vm.delete", &format!("vm:{id}"), "succeeded")) }
        })
        .await
        .unwrap();
    service.ready().await.unwrap();
}

impl World {
    fn warren(&self, args: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warren"));
        command.args(args).env("WARREN_NATS_URL", self.nats.url()).env("HOME", self.home.path());
        command.env_remove("XDG_STATE_HOME").env_remove("XDG_CACHE_HOME").kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn project(&self) -> PathBuf {
        let dir = self.home.path().join("project");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("file"), "one\n").unwrap();
        dir
    }

    /// What this machine remembers of the workspace.
    fn bases(&self) -> usize {
        let record = self.home.path().join(format!(".local/state/warren/workspaces/{}.json", self.vm));
        let record: Value = serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
        record["bases"].as_array().unwrap().len()
    }

    /// The references of what was sent, or is being sent, in the snapshots' own repository.
    fn references(&self) -> String {
        let dir = self.home.path().join(format!(".local/state/warren/workspaces/{}.git", self.vm));
        let args = ["for-each-ref", "--format=%(refname)"];
        let output = std::process::Command::new("git").current_dir(dir).args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

fn tell(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().unwrap().cast_signed()), signal).unwrap();
}

async fn ended(child: Child) -> (Option<i32>, String) {
    let ended: Output = tokio::time::timeout(BOUND, child.wait_with_output()).await.expect("the client ends").unwrap();
    let said = [ended.stdout, ended.stderr].concat();
    (ended.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// A prepare that is interrupted while its tree is on its way.
async fn interrupted(world: &World, project: &Path) -> Child {
    let child = world.warren(&["workspace", "prepare", "web", &project.display().to_string()]);
    world.asked.wait("wait").await;
    tell(&child, Signal::SIGINT);
    world.asked.wait("cancel").await;
    child
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepare_that_was_called_off_too_late_stands_and_is_remembered() {
    let world = world(Cancelled::TooLate).await;
    let (code, said) = ended(interrupted(&world, &world.project()).await).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the new tree stands") && said.contains("2 entries, 1 files sent"), "{said}");
    assert_eq!(world.bases(), 1);
    assert_eq!(world.references(), "refs/warren/web/base\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepare_that_was_called_off_in_time_is_forgotten() {
    let world = world(Cancelled::InTime).await;
    let (code, said) = ended(interrupted(&world, &world.project()).await).await;
    assert_eq!(code, Some(11), "{said}");
    assert!(said.contains("what it was"), "{said}");
    assert_eq!(world.bases(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepare_whose_end_nobody_saw_is_remembered_as_one_that_may_stand() {
    let world = world(Cancelled::Silence).await;
    let mut child = interrupted(&world, &world.project()).await;
    // The client has heard the first one; it waits for an end that does not come.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while lines.next_line().await.unwrap().expect("it goes on") != "phase calling the prepare off" {}
    tell(&child, Signal::SIGINT);
    let mut said = String::new();
    while let Some(line) = tokio::time::timeout(BOUND, lines.next_line()).await.expect("the client ends").unwrap() {
        said.push_str(&line);
    }
    assert_eq!(child.wait().await.unwrap().code(), Some(11), "{said}");
    assert!(said.contains("is not known") && said.contains("warren op wait"), "{said}");
    assert!(!said.contains("what it was"), "{said}");
    assert_eq!(world.bases(), 1);
    assert_eq!(world.references(), "refs/warren/web/pending\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_interrupted_while_its_command_is_being_started_and_its_vm_deleted() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let world = world(Cancelled::InTime).await;
        let child = world.warren(&["--no-direct", "run", "debian", "--", "true"]);
        world.asked.wait("open").await;
        tell(&child, signal);
        let (code, said) = ended(child).await;
        assert_eq!(code, Some(130), "{said}");
        world.asked.wait(&format!("delete {}", world.vm)).await;
    }
}

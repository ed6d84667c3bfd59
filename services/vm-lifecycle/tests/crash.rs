//! Stories of crashes: the real binary dies as under `kill -9` at every point of a create, its engines restart,
//! its worker is replaced; the operation always ends, done or undone with nothing left.

mod common;

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use common::{BOUND, FakeAgent, Lab, Mood, roomy};
use contract::{
    OperationId, host, lab,
    operation::{Cancel, OperationState},
    vm::{self, VmState},
};
use nix::{sys::signal, unistd::Pid};
use serde_json::json;
use testkit::wait_until;

/// The real service as a child; ended with the test.
struct Service(Child);

impl Service {
    fn spawn(lab: &Lab, fault: Option<(&str, &Path)>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vm-lifecycle"));
        command.env("WARREN_NATS_URL", lab.nats.url()).env("WARREN_DATABASE_URL", lab.postgres.url());
        command.env("WARREN_ADDRESS_REST", "0").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some((point, mark)) = fault {
            command.env("WARREN_FAULT", point).env("WARREN_FAULT_MARK", mark);
        }
        Self(command.spawn().unwrap())
    }

    /// Waits until it answers.
    async fn ready(lab: &Lab, fault: Option<(&str, &Path)>) -> Self {
        let service = Self::spawn(lab, fault);
        wait_until("the service", BOUND, async || {
            // The verb that is served last.
            lab.bus.call::<host::List>(&host::Empty {}).await.ok()
        })
        .await;
        service
    }

    async fn dies(&mut self) {
        wait_until("the crash", BOUND, async || self.0.try_wait().unwrap()).await;
    }

    /// Asks it to end as an operator would, and waits for it.
    async fn terminate(mut self) {
        signal::kill(Pid::from_raw(self.0.id().cast_signed()), signal::Signal::SIGTERM).unwrap();
        let status = wait_until("the end", BOUND, async || self.0.try_wait().unwrap()).await;
        assert!(status.success(), "{status}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }
}

/// What time does in fifteen seconds: a dead worker's leases run out.
async fn expire_leases(lab: &Lab) {
    lab.sql.execute("update operations.operation set lease_until = now() where state = 'running'", &[]).await.unwrap();
}

async fn lab_with_host() -> (Lab, FakeAgent) {
    let lab = Lab::engines(|_| ()).await;
    let first = Service::ready(&lab, None).await;
    let agent = lab.host("h1", roomy()).await;
    first.terminate().await;
    (lab, agent)
}

/// Asks for a create. The service may die before it has answered; then the newest row tells.
async fn accepted(lab: &Lab, create: serde_json::Value) -> OperationId {
    let answer = tokio::time::timeout(Duration::from_secs(3), lab.call::<vm::Create>(create, None)).await;
    if let Ok(Ok(operation)) = answer {
        return operation.id;
    }
    let look = "select id from operations.operation where kind = 'vm.create' order by id desc limit 1";
    OperationId(lab.sql.query_one(look, &[]).await.unwrap().get(0))
}

const STEPS: [&str; 7] = ["resolve", "reserve", "kernel", "provision", "boot", "ready", "finish"];

#[tokio::test]
async fn killed_at_any_point_of_a_create_it_is_finished_by_the_next() {
    let (lab, agent) = lab_with_host().await;
    let dir = tempfile::tempdir().unwrap();
    for (n, step) in STEPS.iter().enumerate() {
        for moment in ["before", "after", "recorded"] {
            let point = format!("vm.create/{step}/{moment}");
            let mut doomed = Service::ready(&lab, Some((&point, &dir.path().join(format!("{n}{moment}"))))).await;
            let name = format!("vm-{n}-{moment}");
            let create = json!({ "name": name, "image": "debian" });
            let operation = accepted(&lab, create).await;
            doomed.dies().await;
            expire_leases(&lab).await;
            let next = Service::ready(&lab, None).await;
            let ended = lab.ended(operation).await;
            assert_eq!(ended.state, OperationState::Succeeded, "{point}: {ended:?}");
            assert_eq!(lab.vm(&name).await.state, VmState::Running, "{point}");
            assert_eq!(lab.count("select count(*) from vm.lease where vm_id is not null").await, 1, "{point}");
            assert_eq!(agent.vms().len(), 1, "{point}");
            lab.order::<vm::Delete>(&name).await.unwrap();
            assert!(agent.vms().is_empty(), "{point}");
            lab.assert_nothing_held().await;
            next.terminate().await;
        }
    }
}

#[tokio::test]
async fn killed_at_any_point_of_an_undo_nothing_is_left() {
    let (lab, agent) = lab_with_host().await;
    let dir = tempfile::tempdir().unwrap();
    agent.set_mood(Mood::Panics);
    for step in ["ready", "boot", "provision", "kernel", "reserve", "resolve"] {
        let point = format!("vm.create/{step}/undone");
        let mut doomed = Service::ready(&lab, Some((&point, &dir.path().join(step)))).await;
        let operation = accepted(&lab, json!({ "name": step, "image": "debian" })).await;
        doomed.dies().await;
        expire_leases(&lab).await;
        let next = Service::ready(&lab, None).await;
        let ended = lab.ended(operation).await;
        assert_eq!(ended.state, OperationState::Failed, "{point}");
        let error = ended.error.unwrap();
        assert_eq!(error.details.unwrap()["console_tail"], "Kernel panic - not syncing", "{point}");
        assert!(agent.vms().is_empty(), "{point}");
        lab.assert_nothing_held().await;
        next.terminate().await;
    }
}

#[tokio::test]
async fn killed_at_any_point_of_a_delete_or_restart_it_is_finished_by_the_next() {
    let (lab, agent) = lab_with_host().await;
    let dir = tempfile::tempdir().unwrap();
    let first = Service::ready(&lab, None).await;
    lab.create("web", json!({})).await.unwrap();
    first.terminate().await;
    let points = [
        "vm.restart/begin-stop",
        "vm.restart/power-off",
        "vm.restart/begin-start",
        "vm.restart/boot",
        "vm.restart/started",
        "vm.delete/begin",
        "vm.delete/remove",
        "vm.delete/release",
    ];
    for (n, step) in points.iter().enumerate() {
        let point = format!("{step}/after");
        let mut doomed = Service::ready(&lab, Some((&point, &dir.path().join(n.to_string())))).await;
        if lab.state("web").await.is_none() {
            lab.create("web", json!({})).await.unwrap();
        }
        let order = json!({ "vm": "web" });
        let operation = if step.starts_with("vm.restart") {
            lab.call::<vm::Restart>(order, None).await.unwrap()
        } else {
            lab.call::<vm::Delete>(order, None).await.unwrap()
        };
        doomed.dies().await;
        expire_leases(&lab).await;
        let next = Service::ready(&lab, None).await;
        assert_eq!(lab.ended(operation.id).await.state, OperationState::Succeeded, "{point}");
        let there = step.starts_with("vm.restart");
        assert_eq!(lab.state("web").await, there.then_some(VmState::Running), "{point}");
        assert_eq!(agent.vms().len(), usize::from(there), "{point}");
        next.terminate().await;
    }
    lab.assert_nothing_held().await;
}

#[tokio::test]
async fn another_worker_adopts_what_a_silent_one_held() {
    let (lab, agent) = lab_with_host().await;
    agent.set_mood(Mood::Hangs);
    let mut first = Service::ready(&lab, None).await;
    let second = Service::spawn(&lab, None);
    let operation = lab.call::<vm::Create>(json!({ "name": "web", "image": "debian" }), None).await.unwrap();
    wait_until("the boot", BOUND, async || agent.log().iter().any(|c| c.verb == "await_ready").then_some(())).await;
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    // No help from the test: the lease runs out by itself.
    agent.set_mood(Mood::Well);
    assert_eq!(lab.ended(operation.id).await.state, OperationState::Succeeded);
    assert_eq!(agent.vms().len(), 1);
    second.terminate().await;
}

#[tokio::test]
async fn restarted_engines_are_found_again() {
    let (mut lab, agent) = lab_with_host().await;
    let service = Service::ready(&lab, None).await;
    agent.set_mood(Mood::Hangs);
    let operation = lab.call::<vm::Create>(json!({ "name": "web", "image": "debian" }), None).await.unwrap();
    wait_until("the boot", BOUND, async || agent.log().iter().any(|c| c.verb == "await_ready").then_some(())).await;
    lab.postgres.restart().await;
    lab.nats.restart().await;
    lab.sql = common::connect(&lab.postgres.url()).await;
    agent.set_mood(Mood::Well);
    assert_eq!(lab.ended(operation.id).await.state, OperationState::Succeeded);
    wait_until("an answer", BOUND, async || lab.order::<vm::Delete>("web").await.ok()).await;
    wait_until("the end", BOUND, async || lab.state("web").await.is_none().then_some(())).await;
    lab.assert_nothing_held().await;
    service.terminate().await;
}

#[tokio::test]
async fn a_cancel_survives_the_death_of_its_worker() {
    let (lab, agent) = lab_with_host().await;
    agent.set_mood(Mood::Hangs);
    let mut first = Service::ready(&lab, None).await;
    let operation = lab.call::<vm::Create>(json!({ "name": "web", "image": "debian" }), None).await.unwrap();
    wait_until("the boot", BOUND, async || agent.log().iter().any(|c| c.verb == "await_ready").then_some(())).await;
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    let cancel = "update operations.operation set cancel_requested = true where id = $1";
    lab.sql.execute(cancel, &[&operation.id.0]).await.unwrap();
    expire_leases(&lab).await;
    let second = Service::ready(&lab, None).await;
    assert_eq!(lab.ended(operation.id).await.state, OperationState::Cancelled);
    // Asking again changes nothing.
    let again = wait_until("an answer", Duration::from_secs(10), async || {
        lab.call::<Cancel>(json!({ "id": operation.id }), None).await.ok()
    })
    .await;
    assert_eq!(again.state, OperationState::Cancelled);
    assert!(agent.vms().is_empty());
    lab.assert_nothing_held().await;
    second.terminate().await;
}

fn shop() -> serde_json::Value {
    json!({
        "lab": "shop", "defaults": { "image": "debian" },
        "vms": [{ "name": "web", "count": 2, "after": ["db"] }, { "name": "db" }],
    })
}

/// Asks for a lab. The service may die before it has answered; then the row of its key tells.
async fn lab_accepted(lab: &Lab, key: &str) -> OperationId {
    let answer = tokio::time::timeout(Duration::from_secs(3), lab.call::<lab::Up>(shop(), Some(key))).await;
    if let Ok(Ok(reply)) = answer {
        return reply.operation.unwrap().id;
    }
    let look = "select id from operations.operation where kind = 'vm.lab_up' and request_key = $1";
    wait_until("the operation", BOUND, async || {
        Some(OperationId(lab.sql.query_opt(look, &[&key]).await.unwrap()?.get(0)))
    })
    .await
}

#[tokio::test]
async fn killed_at_any_point_of_a_lab_it_is_finished_by_the_next() {
    let (lab, agent) = lab_with_host().await;
    let dir = tempfile::tempdir().unwrap();
    let points = [
        "vm.lab_up/check/after",
        "vm.lab_up/images/recorded",
        "vm.lab_up/reserve/after",
        "vm.lab_up/reserve/recorded",
        "vm.create/reserve/after",
        "vm.lab_up/boot/after",
        "vm.lab_up/finish/after",
        "vm.lab_down/check/recorded",
        "vm.delete/remove/after",
        "vm.lab_down/take-down/after",
    ];
    for (n, point) in points.iter().enumerate() {
        let mut doomed = Service::ready(&lab, Some((point, &dir.path().join(n.to_string())))).await;
        let operation = lab_accepted(&lab, point).await;
        let dies_up = !point.contains("down") && !point.contains("delete");
        if dies_up {
            doomed.dies().await;
            expire_leases(&lab).await;
        }
        let mut next = Some(if dies_up { Service::ready(&lab, None).await } else { doomed });
        let ended = lab.ended(operation).await;
        assert_eq!(ended.state, OperationState::Succeeded, "{point}: {ended:?}");
        assert_eq!(lab.count("select count(*) from vm.vm where state = 'running'").await, 3, "{point}");
        let creates = "select count(*) from operations.operation where kind = 'vm.create' and state = 'succeeded'";
        assert_eq!(lab.count(creates).await, 3 * (i64::try_from(n).unwrap() + 1), "{point}");
        assert_eq!(agent.vms().len(), 3, "{point}");
        let down = lab.call::<lab::Down>(json!({ "lab": "shop" }), None).await.unwrap().operation.unwrap();
        if !dies_up {
            next.as_mut().unwrap().dies().await;
            expire_leases(&lab).await;
            next = Some(Service::ready(&lab, None).await);
        }
        assert_eq!(lab.ended(down.id).await.state, OperationState::Succeeded, "{point}");
        assert!(agent.vms().is_empty(), "{point}");
        lab.assert_nothing_held().await;
        next.unwrap().terminate().await;
    }
}

#[tokio::test]
async fn killed_at_any_point_of_a_labs_undo_nothing_is_left() {
    let (lab, agent) = lab_with_host().await;
    let dir = tempfile::tempdir().unwrap();
    agent.set_mood(Mood::Panics);
    for step in ["boot", "reserve", "images", "check"] {
        let point = format!("vm.lab_up/{step}/undone");
        let mut doomed = Service::ready(&lab, Some((&point, &dir.path().join(step)))).await;
        let operation = lab_accepted(&lab, step).await;
        doomed.dies().await;
        expire_leases(&lab).await;
        let next = Service::ready(&lab, None).await;
        let ended = lab.ended(operation).await;
        assert_eq!(ended.state, OperationState::Failed, "{point}");
        assert_eq!(ended.error.unwrap().details.unwrap()["console_tail"], "Kernel panic - not syncing", "{point}");
        assert!(agent.vms().is_empty(), "{point}");
        lab.assert_nothing_held().await;
        next.terminate().await;
    }
}

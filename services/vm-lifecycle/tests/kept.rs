//! Stories of what is asked for in advance: labels to find VMs by, restart policies, a time to live, protection.

mod common;

use common::{BOUND, FakeAgent, Lab, Mood, roomy};
use contract::{
    ErrorCode,
    agent::HostVmState,
    vm::{self, Vm, VmState},
};
use serde_json::{Value, json};
use testkit::wait_until;
use vm_lifecycle::db::change::{self, ChangeError};

async fn names(lab: &Lab, filter: Value) -> Vec<String> {
    let list = lab.call::<vm::List>(filter, None).await.unwrap();
    list.vms.iter().map(|vm| vm.name.to_string()).collect()
}

async fn until(lab: &Lab, what: &str, is: impl Fn(&Vm) -> bool) -> Vm {
    wait_until(what, BOUND, async || Some(lab.vm("web").await).filter(|vm| is(vm))).await
}

/// The VM ends although nobody stopped it.
async fn ends(lab: &Lab, agent: &FakeAgent, state: HostVmState) {
    let id = lab.vm("web").await.id;
    agent.end(id, state).await;
}

/// Makes the next restart due now, as waiting would.
async fn hurry(lab: &Lab) {
    lab.sql.execute("update vm.vm set restart_at = now() where restart_at is not null", &[]).await.unwrap();
}

#[tokio::test]
async fn vms_are_found_by_their_labels_image_and_host() {
    let lab = Lab::start().await;
    let _agent = lab.host("h1", roomy()).await;
    lab.create("a", json!({ "labels": { "ci": "1", "team": "core" } })).await.unwrap();
    lab.create("b", json!({ "labels": { "ci": "2" } })).await.unwrap();
    lab.create("c", json!({})).await.unwrap();
    assert_eq!(names(&lab, json!({ "label": "ci" })).await, ["a", "b"]);
    assert_eq!(names(&lab, json!({ "label": "ci=1" })).await, ["a"]);
    assert_eq!(names(&lab, json!({ "label": "ci=2,team" })).await, [""; 0]);
    assert_eq!(names(&lab, json!({ "label": "ci=1,team" })).await, ["a"]);
    assert_eq!(names(&lab, json!({ "image": "debian", "limit": 2 })).await, ["a", "b"]);
    assert_eq!(names(&lab, json!({ "image": "nope" })).await, [""; 0]);
    let id = lab.vm("a").await.image.to_string();
    assert_eq!(names(&lab, json!({ "image": id, "host": "h1", "state": "running" })).await, ["a", "b", "c"]);
    assert_eq!(lab.vm("a").await.labels.len(), 2);
}

#[tokio::test]
async fn a_wrong_setting_is_refused_before_anything_is_written() {
    let lab = Lab::start().await;
    let too_many: serde_json::Map<_, _> = (0..33).map(|n| (format!("l{n}"), json!(""))).collect();
    for wrong in [
        json!({ "ttl_seconds": 1 }),
        json!({ "ttl_seconds": 60, "deletion_protection": true }),
        json!({ "labels": too_many }),
    ] {
        let refused = lab.create("web", wrong.clone()).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::InvalidArgument, "{wrong}");
    }
    for wrong in [
        json!({ "name": "w", "image": "i", "labels": { "a b": "" } }),
        json!({ "name": "w", "image": "i", "restart": "yes" }),
    ] {
        assert!(serde_json::from_value::<vm::CreateRequest>(wrong).is_err());
    }
    assert_eq!(lab.count("select count(*) from operations.operation").await, 0);
}

#[tokio::test]
async fn a_vm_that_died_is_started_again_with_growing_pauses_and_one_that_was_stopped_is_not() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    lab.create("web", json!({ "restart": "on-failure" })).await.unwrap();
    for n in 0..3u32 {
        ends(&lab, &agent, HostVmState::Failed).await;
        let failed = until(&lab, "the pause", |vm| vm.restart_at.is_some()).await;
        assert_eq!((failed.state, failed.restarts), (VmState::Failed, n));
        let pause = lab
            .sql
            .query_one("select extract(epoch from restart_at - changed_at)::float8 from vm.vm", &[])
            .await
            .unwrap()
            .get::<_, f64>(0);
        assert!((pause - f64::from(1 << n)).abs() < 0.5, "pause {n} was {pause} s");
        hurry(&lab).await;
        until(&lab, "the restart", |vm| vm.state == VmState::Running && vm.restarts == n + 1).await;
    }
    // Ten healthy minutes later the pauses begin anew.
    lab.sql.execute("update vm.vm set ready_at = now() - interval '11 min'", &[]).await.unwrap();
    ends(&lab, &agent, HostVmState::Failed).await;
    until(&lab, "the first pause again", |vm| vm.restart_at.is_some() && vm.restarts == 0).await;
    hurry(&lab).await;
    until(&lab, "the restart", |vm| vm.state == VmState::Running).await;

    // A guest that powers off by itself did not fail, and a stop is a stop.
    ends(&lab, &agent, HostVmState::Off).await;
    let off = until(&lab, "the power-off", |vm| vm.state == VmState::Stopped).await;
    assert_eq!(off.restart_at, None);
    lab.order::<vm::Start>("web").await.unwrap();
    lab.order::<vm::Stop>("web").await.unwrap();
    assert_eq!(lab.vm("web").await.restart_at, None);
}

#[tokio::test]
async fn always_means_after_a_power_off_too_and_a_start_that_fails_is_tried_again() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    lab.create("web", json!({ "restart": "always" })).await.unwrap();
    agent.set_mood(Mood::Panics);
    ends(&lab, &agent, HostVmState::Off).await;
    until(&lab, "a start that failed", |vm| vm.state == VmState::Failed && vm.restarts == 1 && vm.restart_at.is_some())
        .await;
    agent.set_mood(Mood::Well);
    hurry(&lab).await;
    until(&lab, "the start", |vm| vm.state == VmState::Running && vm.restarts == 2).await;
}

#[tokio::test]
async fn a_vm_whose_time_is_up_is_deleted() {
    let lab = Lab::start().await;
    let _agent = lab.host("h1", roomy()).await;
    lab.create("web", json!({ "ttl_seconds": 3600 })).await.unwrap();
    assert!(lab.vm("web").await.expires_at.is_some());
    lab.sql.execute("update vm.vm set expires_at = now()", &[]).await.unwrap();
    wait_until("the end", BOUND, async || lab.state("web").await.is_none().then_some(())).await;
    wait_until("the operation's end", BOUND, async || {
        (lab.count("select count(*) from operations.operation where state in ('queued', 'running')").await == 0)
            .then_some(())
    })
    .await;
    lab.assert_nothing_held().await;
    assert_eq!(lab.count("select count(*) from operations.operation where kind = 'vm.delete'").await, 1);
}

#[tokio::test]
async fn a_protected_vm_is_not_deleted() {
    let lab = Lab::start().await;
    let _agent = lab.host("h1", roomy()).await;
    lab.create("web", json!({ "deletion_protection": true })).await.unwrap();
    let refused = lab.order::<vm::Delete>("web").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    assert!(refused.hint.unwrap().contains("deletion-protection"));
    assert_eq!(lab.vm("web").await.state, VmState::Running);
    assert_eq!(lab.count("select count(*) from operations.operation where kind = 'vm.delete'").await, 0);
}

#[tokio::test]
async fn a_change_holds_what_it_takes_and_gives_back_what_it_leaves() {
    let lab = Lab::start().await;
    let _agent = lab.host("h1", roomy()).await;
    lab.create("web", json!({ "memory": "512M" })).await.unwrap();
    lab.create("db", json!({})).await.unwrap();
    let store = store::Store::connect(&lab.config.database_url, lab.config.pool).await.unwrap();
    let web = lab.vm("web").await;
    let mut wanted = vm_lifecycle::domain::plan::Wanted::of(&web);
    (wanted.cpus, wanted.memory) = (3, contract::MebiBytes(256));
    for _ in 0..2 {
        change::vm_change(&store, web.id, 99, &wanted).await.unwrap();
        let host = lab.listed_host("h1").await;
        assert_eq!((host.allocated.cpus, host.allocated.memory.0), (4, 512), "a repeat changes nothing more");
    }
    assert!(matches!(change::vm_change(&store, web.id, 98, &wanted).await, Err(ChangeError::Stale)));
    wanted.name = "db".parse().unwrap();
    assert!(matches!(change::vm_change(&store, web.id, 99, &wanted).await, Err(ChangeError::NameTaken(_))));
    (wanted.name, wanted.cpus) = (web.name.clone(), 64);
    assert!(matches!(change::vm_change(&store, web.id, 99, &wanted).await, Err(ChangeError::NoRoom(_))));
    assert_eq!(lab.listed_host("h1").await.allocated.cpus, 4);
    assert_eq!(lab.vm("web").await.cpus, 3);
}

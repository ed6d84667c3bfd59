//! Stories of hosts: they register, beat, go silent, come back, and tell what became of VMs.

mod common;

use std::time::Duration;

use common::{BOUND, Lab, Mood, roomy, vm_of};
use contract::{
    ErrorCode, VmId,
    agent::HostVmState,
    host::{self, HeartbeatRequest, HostState},
    vm::{self, VmState},
};
use serde_json::json;
use testkit::wait_until;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_register_at_once_get_subnets_of_their_own() {
    let lab = Lab::with(|config| {
        config.network = "10.9.0.0/22".parse().unwrap();
        config.host_prefix = 24;
    })
    .await;
    let agents = futures::future::join_all((1..=4).map(|n| lab.host_without_image(format!("h{n}")))).await;
    let mut subnets = Vec::new();
    for agent in &agents {
        let told = agent.register().await.unwrap();
        assert_eq!(told.gateway, told.subnet.hosts().next().unwrap());
        assert_eq!((told.domain.as_str(), told.orphans.len()), ("warren", 0));
        subnets.push(told.subnet.to_string());
    }
    subnets.sort();
    assert_eq!(subnets, ["10.9.0.0/24", "10.9.1.0/24", "10.9.2.0/24", "10.9.3.0/24"]);
    let request = json!({ "host": "h5", "incarnation": Uuid::now_v7(), "capacity": roomy(), "vmm": "x", "version": "0", "vms": [] });
    let error = lab.call::<host::Register>(request, None).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
    assert!(error.hint.unwrap().contains("WARREN_LAB_NETWORK"));
}

#[tokio::test]
async fn the_newest_incarnation_speaks_for_a_host() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    let old = agent.incarnation();
    let beat = async |host: &str, incarnation: Uuid| {
        let capacity = roomy();
        let request = HeartbeatRequest { host: host.parse().unwrap(), incarnation, capacity, kernels: None };
        lab.bus.call::<host::Heartbeat>(&request).await
    };
    assert!(!beat("h1", old).await.unwrap().register);
    assert!(beat("unknown", old).await.unwrap().register);

    let new = Uuid::now_v7();
    agent.register_with(new, roomy(), vec![]).await.unwrap();
    assert!(!beat("h1", new).await.unwrap().register);
    assert_eq!(beat("h1", old).await.unwrap_err().code, ErrorCode::Aborted);
    assert_eq!(agent.report(VmId::new(), HostVmState::Off, 1).await.unwrap_err().code, ErrorCode::Aborted);
    assert_eq!(agent.register_with(old, roomy(), vec![]).await.unwrap_err().code, ErrorCode::Aborted);
    // A host whose clock went back is heard again once nobody else speaks for it.
    let forget = "update vm.host set last_seen = now() - interval '1 min'";
    lab.sql.execute(forget, &[]).await.unwrap();
    agent.register_with(old, roomy(), vec![]).await.unwrap();
}

#[tokio::test]
async fn a_vmm_that_dies_makes_its_vm_failed_and_old_news_change_nothing() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    let id = vm_of(&lab.create("web", json!({})).await.unwrap());
    let first = agent.epoch(id);
    lab.order::<vm::Restart>("web").await.unwrap();
    agent.report(id, HostVmState::Failed, first).await.unwrap();
    assert_eq!(lab.vm("web").await.state, VmState::Running, "that was before the restart");

    agent.report(id, HostVmState::Failed, agent.epoch(id)).await.unwrap();
    let web = lab.vm("web").await;
    assert_eq!((web.state, web.reason.as_deref()), (VmState::Failed, Some("killed by signal 9")));
    wait_until("the event", BOUND, async || (lab.events(id).await.last()? == "failed").then_some(())).await;
    lab.order::<vm::Start>("web").await.unwrap();
    assert_eq!(lab.vm("web").await.state, VmState::Running);

    // A guest that powers itself off is stopped, not failed.
    agent.report(id, HostVmState::Off, agent.epoch(id)).await.unwrap();
    assert_eq!(lab.vm("web").await.state, VmState::Stopped);
}

#[tokio::test]
async fn what_a_host_says_of_a_vm_in_work_does_not_count() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    let id = vm_of(&lab.create("web", json!({})).await.unwrap());
    lab.order::<vm::Stop>("web").await.unwrap();
    agent.set_mood(Mood::Hangs);
    let start = lab.call::<vm::Start>(json!({ "vm": "web" }), None).await.unwrap();
    wait_until("the start", BOUND, async || lab.state("web").await.filter(|s| *s == VmState::Starting)).await;
    agent.report(id, HostVmState::Failed, i64::MAX).await.unwrap();
    assert_eq!(lab.vm("web").await.state, VmState::Starting);
    agent.set_mood(Mood::Well);
    assert!(lab.ended(start.id).await.error.is_none());
}

#[tokio::test]
async fn a_registering_host_learns_of_orphans_and_tells_what_it_lost() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    let (kept, lost) =
        (vm_of(&lab.create("kept", json!({})).await.unwrap()), vm_of(&lab.create("lost", json!({})).await.unwrap()));
    agent.set_mood(Mood::Hangs);
    let booting = lab.call::<vm::Create>(json!({ "name": "new", "image": "debian" }), None).await.unwrap();
    wait_until("the boot", BOUND, async || (agent.vms().len() == 3).then_some(())).await;
    // Rows changed just now are left alone, because the host's list may be older.
    lab.sql.execute("update vm.vm set changed_at = now() - interval '1 min'", &[]).await.unwrap();

    let stranger = VmId::new();
    let mut seen = agent.observations();
    seen.retain(|seen| seen.vm != lost);
    let mut strange = seen[0].clone();
    strange.vm = stranger;
    seen.push(strange);
    let told = agent.register_with(agent.incarnation(), roomy(), seen).await.unwrap();
    assert_eq!(told.orphans, [stranger], "a VM that is being created is none");
    let lost = lab.vm(&lost.to_string()).await;
    assert_eq!(lost.state, VmState::Failed);
    assert!(lost.reason.unwrap().contains("directory is gone"));
    assert_eq!(lab.vm(&kept.to_string()).await.state, VmState::Running);
    agent.set_mood(Mood::Well);
    assert!(lab.ended(booting.id).await.error.is_none());
}

#[tokio::test]
async fn a_silent_host_is_down_for_all_and_told_of_once() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    lab.create("web", json!({})).await.unwrap();
    let down = async |times: usize, what: &str| {
        wait_until(what, BOUND, async || (lab.host_events("h1").await == what).then_some(())).await;
        assert_eq!(lab.host_events("h1").await.split(' ').count(), times);
    };
    down(1, "up").await;
    agent.set_silent(true);
    let forget = "update vm.host set last_seen = now() - interval '11 s'";
    // A heartbeat under way may come after the change once.
    wait_until("the silence", BOUND, async || {
        lab.sql.execute(forget, &[]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        (lab.listed_host("h1").await.state == HostState::Down).then_some(())
    })
    .await;
    let web = lab.vm("web").await;
    assert_eq!((web.state, web.host_down), (VmState::Running, true));
    assert_eq!(lab.create("other", json!({})).await.unwrap_err().code, ErrorCode::Unavailable);
    assert_eq!(lab.create("other", json!({ "host": "h1" })).await.unwrap_err().code, ErrorCode::Unavailable);
    down(2, "up down").await;
    agent.set_silent(false);
    down(3, "up down up").await;
    assert!(!lab.vm("web").await.host_down);
    lab.create("other", json!({})).await.unwrap();
}

#[tokio::test]
async fn a_vm_whose_host_is_gone_is_neither_deleted_nor_lost() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    lab.create("web", json!({})).await.unwrap();
    agent.set_mood(Mood::Away);
    agent.set_silent(true);
    let delete = lab.call::<vm::Delete>(json!({ "vm": "web" }), None).await.unwrap();
    wait_until("the delete", BOUND, async || lab.state("web").await.filter(|s| *s == VmState::Deleting)).await;
    lab.sql.execute("update vm.host set last_seen = now() - interval '1 min'", &[]).await.unwrap();
    let error = lab.ended(delete.id).await.error.unwrap();
    assert_eq!(error.code, ErrorCode::Unavailable);
    let web = lab.vm("web").await;
    assert_eq!(web.state, VmState::Running, "where it was");
    assert!(web.host_down && web.reason.unwrap().contains("its delete was given up"));

    agent.set_mood(Mood::Well);
    agent.set_silent(false);
    wait_until("the host", BOUND, async || (!lab.vm("web").await.host_down).then_some(())).await;
    lab.order::<vm::Delete>("web").await.unwrap();
    assert!(agent.vms().is_empty());
    lab.assert_nothing_held().await;
}

#[tokio::test]
async fn an_undo_that_cannot_reach_its_host_is_owed_and_done_later() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    agent.set_mood(Mood::Hangs);
    let create = lab.call::<vm::Create>(json!({ "name": "web", "image": "debian" }), None).await.unwrap();
    wait_until("the boot", BOUND, async || (!agent.vms().is_empty()).then_some(())).await;
    agent.set_mood(Mood::Away);
    lab.call::<contract::operation::Cancel>(json!({ "id": create.id }), None).await.unwrap();
    lab.ended(create.id).await;
    assert_eq!(lab.count("select count(*) from operations.operation where undo_owed").await, 1);
    assert_eq!(lab.state("web").await, Some(VmState::Creating), "the host may still have it, so its claims are kept");
    agent.set_mood(Mood::Well);
    wait_until("the undo", BOUND, async || lab.state("web").await.is_none().then_some(())).await;
    wait_until("the undo's end", BOUND, async || {
        (lab.count("select count(*) from operations.operation where undo_owed").await == 0).then_some(())
    })
    .await;
    assert!(agent.vms().is_empty());
    lab.assert_nothing_held().await;
}

//! Stories of idle limits: what hosts tell of use, and what becomes of a VM that nobody uses.

mod common;

use common::{BOUND, FakeAgent, Lab, roomy};
use contract::{
    ErrorCode,
    change::SetReply,
    idle::{IdleAction, IdleLimit},
    vm::{self, Vm, VmState},
};
use serde_json::{Value, json};
use testkit::wait_until;

async fn until(lab: &Lab, what: &str, is: impl Fn(&Vm) -> bool) -> Vm {
    wait_until(what, BOUND, async || Some(lab.vm("web").await).filter(|vm| is(vm))).await
}

async fn set(lab: &Lab, more: Value) -> Result<SetReply, contract::ApiError> {
    let mut request = json!({ "vm": "web", "wait": true });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    lab.call::<vm::Set>(request, None).await
}

/// The VM was ready a day ago, as waiting would have it.
async fn a_day_passes(lab: &Lab) {
    lab.sql.execute("update vm.vm set active_at = now() - interval '1 day'", &[]).await.unwrap();
}

/// Two of the keeper's rounds pass: whoever was due has been dealt with.
async fn keeper_looks(lab: &Lab) {
    // A VM whose time is up shows it: it goes after all that was due before it.
    lab.create("witness", json!({ "ttl_seconds": 3600 })).await.unwrap();
    lab.sql.execute("update vm.vm set expires_at = now() where name = 'witness'", &[]).await.unwrap();
    wait_until("the keeper", BOUND, async || lab.state("witness").await.is_none().then_some(())).await;
}

async fn operations(lab: &Lab, kind: &str) -> i64 {
    lab.count(&format!("select count(*) from operations.operation where kind = '{kind}' and resource <> ''")).await
}

async fn tell(lab: &Lab, agent: &FakeAgent, seconds: u64) -> usize {
    let id = lab.vm("web").await.id;
    agent.tell_idle(&[(id, seconds)]).await.unwrap().len()
}

#[tokio::test]
async fn a_vm_that_nobody_uses_is_stopped_and_its_restart_policy_does_not_start_it_again() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    lab.create("web", json!({ "idle_seconds": 1800, "restart": "always" })).await.unwrap();
    let made = lab.vm("web").await;
    assert_eq!(made.idle_limit, Some(IdleLimit { seconds: 1800, action: IdleAction::Stop }));
    a_day_passes(&lab).await;
    // Its host has told nothing yet: nobody knows that it is idle.
    keeper_looks(&lab).await;
    assert_eq!(lab.vm("web").await.state, VmState::Running);
    assert_eq!(tell(&lab, &agent, 1700).await, 1, "the host learns who has a limit");
    keeper_looks(&lab).await;
    assert_eq!(lab.vm("web").await.state, VmState::Running);

    tell(&lab, &agent, 1801).await;
    // What was told does not go back, so the VM counts as used 1700 s ago still.
    keeper_looks(&lab).await;
    assert_eq!(lab.vm("web").await.state, VmState::Running);
    a_day_passes(&lab).await;
    tell(&lab, &agent, 1801).await;
    let off = until(&lab, "the stop", |vm| vm.state == VmState::Stopped).await;
    assert_eq!(off.reason.as_deref(), Some("stopped after 30 min idle"));
    assert_eq!((off.restart_at, off.active_at), (None, None));
    let events = wait_until("the events", BOUND, async || {
        Some(lab.events(off.id).await).filter(|events| events.contains(&"stopped".to_owned()))
    })
    .await;
    assert!(events.contains(&"idle".to_owned()), "{events:?}");
    keeper_looks(&lab).await;
    assert_eq!((lab.vm("web").await.state, operations(&lab, "vm.stop").await), (VmState::Stopped, 1));

    // Started again it is not idle, whatever an older report says.
    lab.order::<vm::Start>("web").await.unwrap();
    lab.sql.execute("update vm.vm set idle_acted_at = null", &[]).await.unwrap();
    tell(&lab, &agent, 86_400).await;
    keeper_looks(&lab).await;
    let running = lab.vm("web").await;
    assert_eq!((running.state, running.reason, operations(&lab, "vm.stop").await), (VmState::Running, None, 1));
}

#[tokio::test]
async fn one_is_paused_another_deleted_and_a_host_that_says_nothing_makes_nobody_idle() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    lab.create("web", json!({ "idle_seconds": 600, "idle_action": "pause" })).await.unwrap();
    tell(&lab, &agent, 5).await;
    lab.sql.execute("update vm.host set activity_at = now() - interval '2 days'", &[]).await.unwrap();
    a_day_passes(&lab).await;
    keeper_looks(&lab).await;
    assert_eq!(lab.vm("web").await.state, VmState::Running, "nobody has looked since");
    tell(&lab, &agent, 601).await;
    let paused = until(&lab, "the pause", |vm| vm.state == VmState::Paused).await;
    assert_eq!(paused.reason.as_deref(), Some("paused after 10 min idle"));
    lab.order::<vm::Resume>("web").await.unwrap();
    tell(&lab, &agent, 601).await;
    keeper_looks(&lab).await;
    let on = lab.vm("web").await;
    assert_eq!((on.state, on.reason), (VmState::Running, None));

    // Another limit begins when it is set, and is told as a plan.
    a_day_passes(&lab).await;
    let reply = set(&lab, json!({ "idle_seconds": 3600, "idle_action": "delete" })).await.unwrap();
    let fields: Vec<_> = reply.plan.iter().map(|change| (change.field.as_str(), change.effect.as_str())).collect();
    assert_eq!(fields, [("idle_seconds", "live"), ("idle_action", "live")]);
    lab.sql.execute("update vm.vm set idle_acted_at = null", &[]).await.unwrap();
    tell(&lab, &agent, 86_400).await;
    keeper_looks(&lab).await;
    assert_eq!(lab.vm("web").await.state, VmState::Running);
    a_day_passes(&lab).await;
    tell(&lab, &agent, 3601).await;
    wait_until("the end", BOUND, async || lab.state("web").await.is_none().then_some(())).await;
    wait_until("the operation's end", BOUND, async || {
        (lab.count("select count(*) from operations.operation where state in ('queued', 'running')").await == 0)
            .then_some(())
    })
    .await;
    lab.assert_nothing_held().await;
}

#[tokio::test]
async fn a_limit_is_taken_back_and_protection_excludes_a_delete() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    for wrong in [
        json!({ "idle_seconds": 9 }),
        json!({ "idle_action": "stop" }),
        json!({ "idle_seconds": 60, "idle_action": "delete", "deletion_protection": true }),
    ] {
        let refused = lab.create("web", wrong.clone()).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::InvalidArgument, "{wrong}");
    }
    lab.create("web", json!({ "idle_seconds": 60, "deletion_protection": true })).await.unwrap();
    assert_eq!(set(&lab, json!({ "idle_action": "delete" })).await.unwrap_err().code, ErrorCode::InvalidArgument);
    set(&lab, json!({ "deletion_protection": false, "idle_action": "delete" })).await.unwrap();
    assert_eq!(lab.vm("web").await.idle_limit.unwrap().action, IdleAction::Delete);
    assert_eq!(set(&lab, json!({ "deletion_protection": true })).await.unwrap_err().code, ErrorCode::InvalidArgument);
    let refused = set(&lab, json!({ "idle_seconds": 0, "idle_action": "pause" })).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InvalidArgument);
    set(&lab, json!({ "idle_seconds": 0, "deletion_protection": true })).await.unwrap();
    assert_eq!(lab.vm("web").await.idle_limit, None);
    a_day_passes(&lab).await;
    assert_eq!(tell(&lab, &agent, 86_400).await, 0, "nobody has a limit");
    keeper_looks(&lab).await;
    assert_eq!(lab.vm("web").await.state, VmState::Running);

    // Another host's agent, and one that was replaced, change nothing.
    let other = lab.host("h2", roomy()).await;
    let web = lab.vm("web").await;
    other.tell_idle(&[(web.id, 1)]).await.unwrap();
    assert_eq!(lab.vm("web").await.active_at, web.active_at);
}

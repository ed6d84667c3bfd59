//! Stories of VMs' lives: create, stop, start, restart, delete, as a client on NATS sees them.

mod common;

use std::time::Duration;

use common::{BOUND, Command, FakeAgent, Lab, Mood, end_pull, roomy, vm_of};
use contract::{
    ApiError, ErrorCode,
    agent::HostVmState,
    operation::{Cancel, OperationState},
    vm::{self, VmState},
};
use serde_json::json;
use testkit::wait_until;

#[tokio::test]
async fn a_vm_is_created_stopped_started_restarted_and_deleted() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    let created = lab.create("web", json!({ "memory": "512M", "disk": "4G" })).await.unwrap();
    let id = vm_of(&created);
    let steps: Vec<_> = created.steps.iter().map(|step| (step.name.as_str(), step.state.as_str())).collect();
    let names = ["resolve", "reserve", "kernel", "provision", "boot", "ready", "finish"];
    assert_eq!(steps, names.map(|name| (name, "done")));

    let web = lab.vm("web").await;
    assert_eq!((web.id, web.state, web.host.as_str(), web.host_down), (id, VmState::Running, "h1", false));
    assert_eq!(web.address.to_string(), "10.77.0.2");
    assert_eq!(web.mac, "02:57:0a:4d:00:02");
    assert_eq!(web.fqdn, "web.warren");
    assert_eq!((web.ssh_host_key.as_deref(), web.ssh_port), (Some("ssh-ed25519 AAAA"), Some(22)));
    assert!(web.ready_at.is_some() && web.operation.is_none() && web.reason.is_none());
    assert_eq!(lab.vm(&id.to_string()).await.name.as_str(), "web");
    let host = lab.listed_host("h1").await;
    assert_eq!((host.allocated.cpus, host.allocated.memory.0, host.allocated.disk.0, host.vms), (1, 512, 4096, 1));

    // A start of a running VM has nothing to do; so has a stop of a stopped one.
    let before = agent.log().len();
    lab.order::<vm::Start>("web").await.unwrap();
    assert_eq!(agent.log().len(), before);
    lab.order::<vm::Stop>("web").await.unwrap();
    assert_eq!(lab.vm("web").await.state, VmState::Stopped);
    let before = agent.log().len();
    lab.order::<vm::Stop>("web").await.unwrap();
    assert_eq!(agent.log().len(), before);
    lab.order::<vm::Start>("web").await.unwrap();
    assert_eq!(lab.vm("web").await.state, VmState::Running);
    lab.order::<vm::Restart>("web").await.unwrap();
    assert_eq!(lab.vm("web").await.state, VmState::Running);
    assert_eq!(lab.vm("web").await.address.to_string(), "10.77.0.2");

    lab.order::<vm::Delete>("web").await.unwrap();
    assert_eq!(lab.state("web").await, None);
    assert_eq!(lab.order::<vm::Delete>("web").await.unwrap_err().code, ErrorCode::NotFound);
    assert!(agent.vms().is_empty());
    lab.assert_nothing_held().await;
    let told = ["reserved", "running", "stopped", "running", "stopped", "running", "deleted"];
    wait_until("the events", BOUND, async || {
        let events = lab.events(id).await;
        // A restart goes from stopping to starting without being stopped in between.
        (events == ["reserved", "running", "stopped", "running", "running", "deleted"] || events == told).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_same_request_key_is_the_same_vm() {
    let lab = Lab::start().await;
    let _agent = lab.host("h1", roomy()).await;
    let request = json!({ "name": "web", "image": "debian", "wait": true });
    let first = lab.call::<vm::Create>(request.clone(), Some("k1")).await.unwrap();
    let second = lab.call::<vm::Create>(request.clone(), Some("k1")).await.unwrap();
    assert_eq!((first.id, vm_of(&first)), (second.id, vm_of(&second)));
    let other = json!({ "name": "other", "image": "debian", "wait": true });
    let refused = lab.call::<vm::Create>(other, Some("k1")).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::InvalidArgument);
    assert_eq!(lab.count("select count(*) from vm.vm").await, 1);

    let delete = json!({ "vm": "web", "wait": true });
    let first = lab.call::<vm::Delete>(delete.clone(), Some("k2")).await.unwrap();
    let second = lab.call::<vm::Delete>(delete, Some("k2")).await.unwrap();
    assert_eq!(first.id, second.id);
}

#[tokio::test]
async fn wrong_requests_are_refused_before_anything_is_written() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    for (wrong, word) in [
        (json!({ "memory": 1 }), "1M of memory"),
        (json!({ "cpus": 0 }), "0 CPUs"),
        (json!({ "image": "../etc" }), "reference"),
        (json!({ "ssh_keys": ["nonsense"] }), "ssh key 1"),
    ] {
        let error = lab.create("web", wrong).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(error.message.contains(word), "{}", error.message);
        assert!(error.hint.is_some());
    }
    assert_eq!(lab.count("select count(*) from operations.operation").await, 0);
    for (wrong, code) in [
        (json!({ "image": "nope" }), ErrorCode::NotFound),
        (json!({ "host": "nope" }), ErrorCode::NotFound),
        (json!({ "memory": "100G" }), ErrorCode::ResourceExhausted),
    ] {
        let error = lab.create("web", wrong).await.unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.details.unwrap()["operation_id"].is_string());
    }
    assert!(agent.log().is_empty(), "no host was asked");
    lab.assert_nothing_held().await;
}

#[tokio::test]
async fn a_create_that_fails_leaves_nothing_but_its_reason() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    agent.set_mood(Mood::Panics);
    let error = lab.create("web", json!({})).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    assert!(error.message.contains("VM web did not boot on h1: the kernel panicked"), "{}", error.message);
    assert_eq!(error.details.unwrap()["console_tail"], "Kernel panic - not syncing");
    agent.set_mood(Mood::DiskFull);
    assert_eq!(lab.create("web", json!({})).await.unwrap_err().code, ErrorCode::ResourceExhausted);
    assert!(agent.vms().is_empty());
    lab.assert_nothing_held().await;
}

#[tokio::test]
async fn a_start_that_fails_leaves_a_failed_vm_with_its_reason() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    lab.create("web", json!({})).await.unwrap();
    lab.order::<vm::Stop>("web").await.unwrap();
    agent.set_mood(Mood::Panics);
    assert_eq!(lab.order::<vm::Start>("web").await.unwrap_err().code, ErrorCode::FailedPrecondition);
    let web = lab.vm("web").await;
    assert_eq!(web.state, VmState::Failed);
    assert!(web.reason.unwrap().contains("the kernel panicked"));
    agent.set_mood(Mood::Well);
    lab.order::<vm::Start>("web").await.unwrap();
    let web = lab.vm("web").await;
    assert_eq!((web.state, web.reason), (VmState::Running, None));
}

#[tokio::test]
async fn a_create_is_cancelled_while_its_guest_boots() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    agent.set_mood(Mood::Hangs);
    let create = json!({ "name": "web", "image": "debian" });
    let operation = lab.call::<vm::Create>(create, None).await.unwrap();
    wait_until("the boot", BOUND, async || agent.log().iter().any(|c| c.verb == "await_ready").then_some(())).await;
    assert_eq!(lab.state("web").await, Some(VmState::Creating));
    assert_eq!(lab.vm("web").await.operation, Some(operation.id));
    lab.call::<Cancel>(json!({ "id": operation.id }), None).await.unwrap();
    let ended = lab.ended(operation.id).await;
    assert_eq!(ended.state, OperationState::Cancelled);
    assert!(agent.vms().is_empty());
    lab.assert_nothing_held().await;
}

#[tokio::test]
async fn operations_on_one_vm_serialise_in_the_order_they_were_given() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    let id = vm_of(&lab.create("web", json!({})).await.unwrap());
    let before = agent.log().len();
    let order = json!({ "vm": "web" });
    let stop = lab.call::<vm::Stop>(order.clone(), None).await.unwrap();
    let start = lab.call::<vm::Start>(order.clone(), None).await.unwrap();
    let again = lab.call::<vm::Stop>(order.clone(), None).await.unwrap();
    let delete = lab.call::<vm::Delete>(order.clone(), None).await.unwrap();
    let late = lab.call::<vm::Start>(order, None).await;
    for operation in [stop, start, again, delete] {
        assert_eq!(lab.ended(operation.id).await.state, OperationState::Succeeded);
    }
    // Given after the delete, it finds nothing, whichever way it was too late.
    let late = match late {
        Ok(operation) => lab.ended(operation.id).await.error.unwrap(),
        Err(error) => error,
    };
    assert_eq!(late.code, ErrorCode::NotFound);
    let log: Vec<Command> = agent.log().split_off(before);
    let mut verbs: Vec<_> = log.iter().map(|command| command.verb).collect();
    verbs.dedup();
    assert_eq!(verbs, ["stop", "boot", "await_ready", "stop", "remove"]);
    assert!(log.is_sorted_by_key(|command| command.epoch), "{log:?}");
    assert!(log.iter().all(|command| command.vm == id));
    lab.assert_nothing_held().await;
}

#[tokio::test]
async fn creates_overlap_in_boot_and_get_different_addresses() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    agent.set_boot_time(Duration::from_millis(500));
    let names = ["a", "b", "c", "d"];
    let created = futures::future::join_all(names.map(|name| lab.create(name, json!({})))).await;
    created.iter().for_each(|created| assert!(created.is_ok(), "{created:?}"));
    assert!(agent.booting_max() >= 2, "boots did not overlap");
    assert_eq!(lab.count("select count(distinct address) from vm.lease where vm_id is not null").await, 4);
}

#[tokio::test]
async fn a_registry_reference_is_pulled_once_and_then_known() {
    let lab = Lab::start().await;
    let _agent = lab.host("h1", roomy()).await;
    let reference = "127.0.0.1:5000/lab/alpine:3.20";
    let create = |name: &str| json!({ "name": name, "image": reference });
    let first = lab.call::<vm::Create>(create("one"), None).await.unwrap();
    let (pull, id) = wait_until("the pull", BOUND, async || lab.images.pulls().pop()).await;
    assert_eq!((pull.name.as_str(), pull.source.to_string().as_str()), ("alpine-3.20", reference));
    assert_eq!(lab.ended_in(first.id, "resolve").await, "resolve");
    lab.images.put_from(&lab.sql, "alpine-3.20", reference, &["h1"]).await;
    end_pull(&lab.sql, id, Ok(lab.images.image("alpine-3.20"))).await;
    assert_eq!(lab.ended(first.id).await.state, OperationState::Succeeded);
    lab.create("two", json!({ "image": reference })).await.unwrap();
    assert_eq!(lab.images.pulls().len(), 1);
    // The same name, another registry: the pull tells whether that is the same image.
    for (vm, same) in [("three", true), ("four", false)] {
        let create = json!({ "name": vm, "image": "localhost:5001/alpine:3.20" });
        let operation = lab.call::<vm::Create>(create, None).await.unwrap();
        let pulls = if same { 2 } else { 3 };
        let (_, id) = wait_until("the pull", BOUND, async || lab.images.pulls().get(pulls - 1).cloned()).await;
        let end = if same { Ok(lab.images.image("alpine-3.20")) } else { Err(ApiError::already_exists("it is taken")) };
        end_pull(&lab.sql, id, end).await;
        let ended = lab.ended(operation.id).await;
        if same {
            assert_eq!(ended.state, OperationState::Succeeded);
        } else {
            let error = ended.error.unwrap();
            assert_eq!(error.code, ErrorCode::FailedPrecondition);
            assert!(error.message.contains(reference), "{}", error.message);
        }
    }
}

#[tokio::test]
async fn a_pull_that_fails_fails_its_create() {
    let lab = Lab::start().await;
    let _agent = lab.host("h1", roomy()).await;
    let create = json!({ "name": "web", "image": "127.0.0.1:1/gone:1" });
    let operation = lab.call::<vm::Create>(create, None).await.unwrap();
    let (_, id) = wait_until("the pull", BOUND, async || lab.images.pulls().pop()).await;
    end_pull(&lab.sql, id, Err(ApiError::unavailable("the registry does not answer").hint("is it up?"))).await;
    let error = lab.ended(operation.id).await.error.unwrap();
    assert_eq!((error.code, error.hint.as_deref()), (ErrorCode::Unavailable, Some("is it up?")));
    assert!(error.message.contains("127.0.0.1:1/gone:1") && error.message.contains("does not answer"));
    lab.assert_nothing_held().await;
}

#[tokio::test]
async fn vms_are_listed_in_pages_and_by_state_and_host() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    let other: FakeAgent = lab.host("h2", roomy()).await;
    for (name, host) in [("a", "h1"), ("b", "h2"), ("c", "h1")] {
        lab.create(name, json!({ "host": host })).await.unwrap();
    }
    lab.order::<vm::Stop>("c").await.unwrap();
    let names = async |filter| {
        let page = lab.call::<vm::List>(filter, None).await.unwrap();
        (page.vms.iter().map(|vm| vm.name.to_string()).collect::<Vec<_>>().join(" "), page.more)
    };
    assert_eq!(names(json!({})).await, ("a b c".into(), false));
    assert_eq!(names(json!({ "limit": 2 })).await, ("a b".into(), true));
    assert_eq!(names(json!({ "limit": 2, "after": "b" })).await, ("c".into(), false));
    assert_eq!(names(json!({ "host": "h1", "state": "running" })).await, ("a".into(), false));
    let error = lab.call::<vm::List>(json!({ "limit": 0 }), None).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidArgument);
    assert_eq!(agent.vms().values().filter(|state| **state == HostVmState::Ready).count(), 1);
    assert_eq!(other.vms().len(), 1);
}

//! Stories of what VMs use: asked of all hosts at once, whoever of them answers.

mod common;

use common::{Lab, Mood, roomy};
use contract::{
    ErrorCode,
    agent::HostVmState,
    usage::{Usage, UsageReply},
    vm,
};
use serde_json::{Value, json};

async fn usage(lab: &Lab, request: Value) -> UsageReply {
    lab.call::<Usage>(request, None).await.unwrap()
}

fn names(reply: &UsageReply) -> Vec<&str> {
    reply.vms.iter().map(|vm| vm.name.as_str()).collect()
}

#[tokio::test]
async fn each_vm_has_its_sample_and_a_host_that_does_not_answer_costs_its_own_only() {
    let lab = Lab::start().await;
    let _one = lab.host("h1", roomy()).await;
    let two = lab.host("h2", roomy()).await;
    lab.images.put(&lab.sql, "debian", &["h1", "h2"]).await;
    for (name, host, label) in [("a", "h1", "1"), ("b", "h2", "1"), ("c", "h1", "2")] {
        lab.create(name, json!({ "host": host, "labels": { "ci": label } })).await.unwrap();
    }
    lab.order::<vm::Stop>("c").await.unwrap();

    let all = usage(&lab, json!({})).await;
    assert_eq!((names(&all), all.silent.len(), all.more), (vec!["a", "b", "c"], 0, false));
    for vm in &all.vms[..2] {
        let sample = vm.sample.as_ref().unwrap();
        assert_eq!((sample.vm, sample.state), (vm.id, HostVmState::Ready));
        assert_eq!(sample.counters.as_ref().unwrap().cpu_usec, 5);
    }
    let off = all.vms[2].sample.as_ref().unwrap();
    assert_eq!((off.state, off.counters.is_none(), off.disk_allocated_bytes), (HostVmState::Off, true, 4096));

    assert_eq!(names(&usage(&lab, json!({ "host": "h1" })).await), ["a", "c"]);
    assert_eq!(names(&usage(&lab, json!({ "label": "ci=1" })).await), ["a", "b"]);
    assert_eq!(names(&usage(&lab, json!({ "vm": "b" })).await), ["b"]);
    let page = usage(&lab, json!({ "limit": 2 })).await;
    assert_eq!((names(&page), page.more), (vec!["a", "b"], true));
    assert_eq!(names(&usage(&lab, json!({ "limit": 2, "after": "b" })).await), ["c"]);
    for (wrong, code) in [
        (json!({ "vm": "nope" }), ErrorCode::NotFound),
        (json!({ "vm": "a", "host": "h1" }), ErrorCode::InvalidArgument),
        (json!({ "limit": 501 }), ErrorCode::InvalidArgument),
    ] {
        assert_eq!(lab.call::<Usage>(wrong.clone(), None).await.unwrap_err().code, code, "{wrong}");
    }

    two.set_mood(Mood::Away);
    let rest = usage(&lab, json!({})).await;
    assert_eq!(names(&rest), ["a", "b", "c"]);
    assert!(rest.vms[0].sample.is_some() && rest.vms[1].sample.is_none());
    assert_eq!(rest.silent.iter().map(|host| host.host.as_str()).collect::<Vec<_>>(), ["h2"]);
    assert_eq!(rest.silent[0].error.code, ErrorCode::Unavailable);
}

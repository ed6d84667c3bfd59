//! Stories of names as name servers read them: all of them in pages, single ones, and what an event leads to.

mod common;

use std::time::Duration;

use common::{BOUND, Lab, Mood, roomy, vm_of};
use contract::{
    ErrorCode, VmId,
    dns::{ListNames, NamedVm, Names, Resolve},
    vm,
};
use serde_json::{Value, json};
use testkit::wait_until;

async fn resolve(lab: &Lab, request: Value) -> Names {
    lab.call::<Resolve>(request, None).await.unwrap()
}

fn named(names: &Names) -> Vec<(&str, String)> {
    names.vms.iter().map(|vm| (vm.name.as_str(), vm.address.to_string())).collect()
}

#[tokio::test]
async fn all_names_come_in_pages_of_any_size_each_once() {
    let lab = Lab::with(|config| config.address_rest = Duration::from_millis(2500)).await;
    let _agents = (lab.host("h1", roomy()).await, lab.host("h2", roomy()).await);
    for (n, host) in ["h1", "h2", "h1", "h2", "h1"].iter().enumerate() {
        lab.create(&format!("vm-{}", 5 - n), json!({ "host": host })).await.unwrap();
    }
    let all = lab.call::<ListNames>(json!({}), None).await.unwrap();
    assert_eq!((all.vms.len(), all.more, all.domain.as_str(), all.rest_ms), (5, false, "warren", 2500));
    assert_eq!(all.networks, ["10.77.0.0/16".parse().unwrap()], "the hosts' subnets are within it");
    let web = &all.vms[0];
    assert_eq!((web.name.as_str(), web.host.as_str(), web.image.as_str()), ("vm-5", "h1", "debian"));
    assert!(all.vms.is_sorted_by_key(|vm| vm.id));

    for limit in 1..=5 {
        let (mut seen, mut after) = (Vec::<NamedVm>::new(), None::<VmId>);
        loop {
            let page = lab.call::<ListNames>(json!({ "limit": limit, "after": after }), None).await.unwrap();
            assert!(page.vms.len() <= limit);
            seen.extend(page.vms);
            after = seen.last().map(|vm| vm.id);
            if !page.more {
                break;
            }
        }
        assert_eq!(seen, all.vms, "in pages of {limit}");
    }
    for limit in [0, 1001] {
        let error = lab.call::<ListNames>(json!({ "limit": limit }), None).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
    }
}

#[tokio::test]
async fn a_name_is_there_from_the_reservation_on_follows_a_rename_and_ends_with_the_row() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    agent.set_mood(Mood::Away);
    let create = json!({ "name": "web", "image": "debian" });
    let operation = lab.call::<vm::Create>(create, None).await.unwrap();
    // Its host does nothing at all, and the name is there.
    let there = wait_until("the reservation", BOUND, async || {
        let names = resolve(&lab, json!({ "names": ["web", "nobody"] })).await;
        (!names.vms.is_empty()).then_some(names)
    })
    .await;
    assert_eq!(named(&there), [("web", "10.77.0.2".to_owned())]);
    let id = there.vms[0].id;
    agent.set_mood(Mood::Well);
    assert_eq!(vm_of(&lab.ended(operation.id).await), id);

    // One that is asked for in three ways is told once; what is nobody's is not told.
    let asked =
        json!({ "vms": [id, VmId::new()], "names": ["web"], "addresses": ["10.77.0.2", "10.77.0.3", "192.0.2.1"] });
    assert_eq!(resolve(&lab, asked).await.vms, there.vms);

    let rename = json!({ "vm": "web", "name": "shop", "wait": true });
    lab.call::<vm::Set>(rename, None).await.unwrap();
    assert_eq!(named(&resolve(&lab, json!({ "names": ["web", "shop"] })).await), [("shop", "10.77.0.2".to_owned())]);
    lab.order::<vm::Delete>("shop").await.unwrap();
    assert!(resolve(&lab, json!({ "vms": [id], "names": ["shop"], "addresses": ["10.77.0.2"] })).await.vms.is_empty());

    // Each of these changes was told of, so that whoever keeps names knows what to ask for.
    let told = wait_until("the events", BOUND, async || {
        let events = lab.events(id).await;
        events.last().is_some_and(|last| last == "deleted").then_some(events)
    })
    .await;
    assert!(told.iter().any(|what| what == "reserved") && told.iter().any(|what| what == "changed"), "{told:?}");
}

#[tokio::test]
async fn a_question_for_nothing_or_too_much_is_refused_and_hosts_of_another_network_are_named() {
    let mut lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    for asked in [json!({}), json!({ "addresses": vec!["10.77.0.2"; 257] })] {
        let error = lab.call::<Resolve>(asked, None).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}");
    }
    assert!(resolve(&lab, json!({ "addresses": vec!["10.77.0.2"; 256] })).await.vms.is_empty());
    drop(agent);

    // The lab moves to another network; the host that has its subnet keeps it.
    lab.server.take().unwrap().shutdown().await;
    lab.config.network = "10.99.0.0/16".parse().unwrap();
    lab.serve().await;
    let networks = resolve(&lab, json!({ "names": ["web"] })).await.networks;
    assert_eq!(networks, ["10.77.0.0/24".parse().unwrap(), "10.99.0.0/16".parse().unwrap()]);
}

//! Stories of claims: many at once want the same name, the last address, the last memory.

mod common;

use std::time::Duration;

use common::{BOUND, Lab, Mood, roomy};
use contract::{
    ErrorCode, MebiBytes,
    host::Capacity,
    vm::{self, VmState},
};
use serde_json::json;
use testkit::wait_until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_32_creates_of_one_name_one_wins_and_no_address_is_burnt() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    let creates = (0..32).map(|_| lab.create("web", json!({})));
    let outcomes = futures::future::join_all(creates).await;
    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    for error in lost.into_iter().map(Result::unwrap_err) {
        assert_eq!(error.code, ErrorCode::AlreadyExists, "{error}");
    }
    assert_eq!(agent.vms().len(), 1);
    assert_eq!(lab.count("select count(*) from vm.lease where vm_id is not null").await, 1);
    // An address that was given and taken back would bear the time of its return.
    assert_eq!(lab.count("select count(*) from vm.lease where freed_at > '-infinity'").await, 0);
    assert_eq!(lab.count("select cpus_held from vm.host").await, 1);
    lab.order::<vm::Delete>("web").await.unwrap();
    lab.assert_nothing_held().await;
}

#[tokio::test]
async fn a_subnet_without_free_addresses_is_exhausted_and_freed_ones_rest() {
    let lab = Lab::with(|config| {
        config.host_prefix = 29;
        config.address_rest = Duration::from_secs(3600);
    })
    .await;
    let agent = lab.host("h1", roomy()).await;
    for name in ["a", "b", "c", "d", "e"] {
        lab.create(name, json!({})).await.unwrap();
    }
    let error = lab.create("f", json!({})).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
    assert!(error.message.contains("h1 lacks addresses"), "{}", error.message);
    assert_eq!((agent.vms().len(), lab.count("select count(*) from vm.vm").await), (5, 5));

    lab.order::<vm::Delete>("c").await.unwrap();
    assert_eq!(lab.create("f", json!({})).await.unwrap_err().code, ErrorCode::ResourceExhausted, "it rests");
    lab.sql.execute("update vm.lease set freed_at = now() - interval '2 h' where vm_id is null", &[]).await.unwrap();
    lab.create("f", json!({})).await.unwrap();
    assert_eq!(lab.vm("f").await.address.to_string(), "10.77.0.4");
}

#[tokio::test]
async fn addresses_are_given_first_freed_first() {
    let lab = Lab::with(|config| {
        config.host_prefix = 29;
        config.address_rest = Duration::ZERO;
    })
    .await;
    let _agent = lab.host("h1", roomy()).await;
    let mut given = Vec::new();
    for name in ["a", "b", "c", "d", "e", "f", "g"] {
        lab.create(name, json!({})).await.unwrap();
        given.push(lab.vm(name).await.address.octets()[3]);
        lab.order::<vm::Delete>(name).await.unwrap();
    }
    assert_eq!(given, [2, 3, 4, 5, 6, 2, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_never_gives_more_than_it_has() {
    let lab = Lab::start().await;
    let capacity = Capacity { cpus: 3, memory: MebiBytes(1024), disk: MebiBytes(1 << 20) };
    let agent = lab.host("h1", capacity).await;
    let names: Vec<String> = (0..8).map(|n| format!("vm-{n}")).collect();
    let creates = names.iter().map(|name| lab.create(name, json!({ "cpus": 1, "memory": 512 })));
    let outcomes = futures::future::join_all(creates).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 2);
    for error in outcomes.into_iter().filter_map(Result::err) {
        assert_eq!(error.code, ErrorCode::ResourceExhausted, "{error}");
        assert!(error.message.contains("h1 lacks"), "{}", error.message);
    }
    let host = lab.listed_host("h1").await;
    assert_eq!((host.allocated.cpus, host.allocated.memory), (2, MebiBytes(1024)));

    // The host comes back smaller than what its VMs hold: they stay, others are refused, and room given back counts.
    let small = Capacity { memory: MebiBytes(256), ..capacity };
    agent.set_capacity(small);
    agent.register().await.unwrap();
    assert_eq!(lab.listed_host("h1").await.capacity.memory, MebiBytes(256));
    assert_eq!(lab.create("more", json!({ "memory": 128 })).await.unwrap_err().code, ErrorCode::ResourceExhausted);
    for name in names {
        if lab.state(&name).await.is_some() {
            lab.order::<vm::Delete>(&name).await.unwrap();
        }
    }
    lab.create("more", json!({ "memory": 256 })).await.unwrap();
    assert_eq!(lab.create("one-more", json!({ "memory": 96 })).await.unwrap_err().code, ErrorCode::ResourceExhausted);
}

#[tokio::test]
async fn a_full_host_is_passed_over_for_one_with_room() {
    let lab = Lab::start().await;
    let small = lab.host("a", Capacity { memory: MebiBytes(300), ..roomy() }).await;
    let large = lab.host("b", roomy()).await;
    for name in ["one", "two"] {
        lab.create(name, json!({ "memory": 256 })).await.unwrap();
    }
    assert_eq!((small.vms().len(), large.vms().len()), (0, 2));
    lab.create("three", json!({ "memory": 256, "host": "a" })).await.unwrap();
    let error = lab.create("four", json!({ "memory": 256, "host": "a" })).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
}

#[tokio::test]
async fn an_image_that_goes_before_the_reservation_is_noticed_by_the_database() {
    let lab = Lab::start().await;
    let _agent = lab.host("h1", roomy()).await;
    // The image-service still tells of the replica; the row is gone.
    lab.sql.execute("delete from image.replica", &[]).await.unwrap();
    let error = lab.create("web", json!({})).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    assert!(error.message.contains("debian is not on host h1 any more"), "{}", error.message);
    lab.assert_nothing_held().await;
}

#[tokio::test]
async fn a_worker_that_lost_its_claim_reserves_nothing() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    agent.set_mood(Mood::Hangs);
    let request = json!({ "name": "web", "image": "debian" });
    let operation = lab.call::<vm::Create>(request, None).await.unwrap();
    wait_until("the row", BOUND, async || lab.state("web").await.filter(|state| *state == VmState::Creating)).await;
    let image = lab.sql.query_one("select image_id from vm.vm", &[]).await.unwrap().get::<_, uuid::Uuid>(0);
    let reserve = "select * from vm.reserve($1, 'late', 'h1', $2, 'debian', 1, 128, 128, '{}', '{}', $3, $4, 0, null)";
    let stale = lab.sql.query(reserve, &[&uuid::Uuid::now_v7(), &image, &operation.id.0, &0i64]).await.unwrap_err();
    assert_eq!(stale.code().unwrap().code(), "WR005");
    assert_eq!(lab.state("late").await, None);
}

//! Stories of labs: several VMs that come up together, in order, all or none, and go together.

mod common;

use common::{BOUND, FakeAgent, Lab, Mood, end_pull, roomy, vm_of};
use contract::{
    ApiError, ErrorCode, VmId,
    agent::HostVmState,
    host::Capacity,
    lab::{self, LabUpReply},
    operation::{self, Operation, OperationState},
    vm::{self, VmState},
};
use serde_json::{Value, json};
use testkit::wait_until;

/// A shop: web servers after the database, a balancer after them.
fn shop() -> Value {
    json!({
        "lab": "shop",
        "defaults": { "image": "debian" },
        "vms": [
            { "name": "lb", "after": ["web"] },
            { "name": "web", "count": 2, "after": ["db"], "env": { "A": "b" } },
            { "name": "db", "memory": "1G", "disks": [{ "name": "data", "size": "64M", "keep": true }] },
        ],
    })
}

fn with(mut request: Value, more: Value) -> Value {
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

async fn up(lab: &Lab, request: Value) -> Result<LabUpReply, ApiError> {
    lab.call::<lab::Up>(with(request, json!({ "wait": true })), None).await
}

async fn begun(lab: &Lab, request: Value) -> Operation {
    lab.call::<lab::Up>(request, None).await.unwrap().operation.unwrap()
}

async fn down(lab: &Lab, name: &str) -> Result<lab::LabDownReply, ApiError> {
    lab.call::<lab::Down>(json!({ "lab": name, "wait": true }), None).await
}

/// The names of the VMs about which the host was told this, in that order.
fn told(agent: &FakeAgent, verb: &str, ids: &[(VmId, String)]) -> Vec<String> {
    let log = agent.log();
    let vms = log.iter().filter(|command| command.verb == verb).map(|command| command.vm);
    let name = |vm: VmId| ids.iter().find(|(id, _)| *id == vm).map(|(_, name)| name.clone());
    vms.filter_map(name).collect()
}

async fn ids(lab: &Lab) -> Vec<(VmId, String)> {
    let rows = lab.sql.query("select id, name from vm.vm", &[]).await.unwrap();
    rows.iter().map(|row| (VmId(row.get(0)), row.get(1))).collect()
}

async fn nothing_left(lab: &Lab, agents: &[&FakeAgent]) {
    lab.assert_nothing_held().await;
    assert_eq!(lab.count("select count(*) from vm.lab_member").await, 0);
    for agent in agents {
        assert!(agent.vms().is_empty(), "{:?}", agent.vms());
    }
}

#[tokio::test]
async fn a_lab_comes_up_in_order_and_goes_in_the_reverse_of_it() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    let dry = up(&lab, with(shop(), json!({ "dry_run": true }))).await.unwrap();
    assert!(dry.operation.is_none() && dry.plan.create.len() == 4, "{dry:?}");
    assert_eq!(lab.count("select count(*) from operations.operation").await, 0);

    let operation = up(&lab, shop()).await.unwrap().operation.unwrap();
    let steps: Vec<_> = operation.steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(steps, ["check", "images", "reserve", "boot", "finish"]);
    let vms = ids(&lab).await;
    let booted = told(&agent, "boot", &vms);
    assert_eq!((booted[0].as_str(), booted[3].as_str(), booted.len()), ("db", "lb", 4), "{booted:?}");
    assert!(agent.booting_max() >= 2, "independent ones boot side by side");
    // db was ready before the first web was begun.
    let log = agent.log();
    let place = |verb: &str, name: &str, last: bool| {
        let id = vms.iter().find(|(_, vm)| vm == name).unwrap().0;
        let matches = |(_, it): &(usize, &common::Command)| it.verb == verb && it.vm == id;
        let mut places = log.iter().enumerate().filter(matches).map(|(n, _)| n);
        if last { places.next_back() } else { places.next() }.unwrap()
    };
    assert!(place("await_ready", "db", true) < place("provision", "web-1", false));

    let seen = lab.call::<lab::Get>(json!({ "lab": "shop" }), None).await.unwrap();
    let order: Vec<_> = seen.vms.iter().map(|it| (it.level, it.vm.name.as_str(), it.vm.state)).collect();
    let running = VmState::Running;
    assert_eq!(order, [(1, "db", running), (2, "web-1", running), (2, "web-2", running), (3, "lb", running)]);
    assert_eq!(seen.vms[3].after.len(), 2);
    assert!(seen.vms[1].vm.features.env.is_empty() && lab.vm("web-1").await.features.env["A"] == "b");
    assert_eq!(lab.vm("db").await.lab.unwrap().as_str(), "shop");
    assert_eq!(lab.vm("db").await.image_name, "debian");
    lab.create("alone", json!({})).await.unwrap();
    let list = lab.call::<vm::List>(json!({ "lab": "shop" }), None).await.unwrap();
    assert_eq!(list.vms.len(), 4);
    let labs = lab.call::<lab::List>(json!({}), None).await.unwrap();
    assert_eq!((labs.labs.len(), labs.labs[0].vms, labs.labs[0].running, labs.more), (1, 4, 4, false));

    let gone = down(&lab, "shop").await.unwrap();
    let names: Vec<_> = gone.vms.iter().map(contract::VmName::as_str).collect();
    assert_eq!(names, ["lb", "web-1", "web-2", "db"]);
    let removed = told(&agent, "remove", &vms);
    assert_eq!((removed[0].as_str(), removed[3].as_str()), ("lb", "db"), "{removed:?}");
    // Twice is fine; kept disks and other VMs stay.
    assert!(down(&lab, "shop").await.unwrap().operation.is_none());
    assert_eq!(lab.call::<lab::Get>(json!({ "lab": "shop" }), None).await.unwrap_err().code, ErrorCode::NotFound);
    let disks = lab.call::<vm::DiskList>(json!({}), None).await.unwrap().disks;
    assert_eq!((disks[0].name.as_str(), disks[0].vm.is_none()), ("data", true));
    lab.order::<vm::Delete>("alone").await.unwrap();
    lab.sql.execute("delete from vm.disk", &[]).await.unwrap();
    lab.sql.execute("update vm.host set disk_held = 0", &[]).await.unwrap();
    nothing_left(&lab, &[&agent]).await;
    let events = wait_until("the events", BOUND, async || {
        let events = lab.lab_events("shop").await;
        (events.len() == 3).then_some(events)
    })
    .await;
    assert_eq!(events, ["reserved", "up", "down"]);
}

#[tokio::test]
async fn up_again_changes_nothing_adds_what_is_missing_and_refuses_what_would_change() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    let mine = with(shop(), json!({ "ssh_keys": [] }));
    up(&lab, mine.clone()).await.unwrap();
    let (commands, operations) = (agent.log().len(), "select count(*) from operations.operation");
    let before = lab.count(operations).await;
    // Another person's keys are no difference.
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJk5hJv8rEx3l2Qm0kTkq3zN0a0y8mX0kq1l0nB1bZ0a me@example";
    let again = up(&lab, with(shop(), json!({ "ssh_keys": [key] }))).await.unwrap();
    assert!(again.operation.is_none() && again.plan.unchanged.len() == 4, "{again:?}");
    assert_eq!((agent.log().len(), lab.count(operations).await), (commands, before));

    // One that is off is started, one that is gone is made again, one more is added; the rest stays.
    lab.order::<vm::Stop>("web-1").await.unwrap();
    lab.order::<vm::Delete>("web-2").await.unwrap();
    let mut more = mine.clone();
    more["vms"][1]["count"] = json!(3);
    let plan = up(&lab, more.clone()).await.unwrap().plan;
    let names = |vms: &[contract::VmName]| vms.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!((names(&plan.create), names(&plan.start)), ("web-2 web-3".to_owned(), "web-1".to_owned()));
    assert_eq!(lab.vm("web-1").await.state, VmState::Running);
    assert_eq!(lab.call::<lab::Get>(json!({ "lab": "shop" }), None).await.unwrap().vms.len(), 5);
    let orders = lab.call::<lab::Get>(json!({ "lab": "shop" }), None).await.unwrap().vms;
    assert_eq!(orders.iter().find(|it| it.vm.name.as_str() == "lb").unwrap().after.len(), 3, "its order follows");
    assert!(up(&lab, more).await.unwrap().operation.is_none());

    // What is in the lab and not in the file is told and stays.
    let plan = up(&lab, mine.clone()).await.unwrap().plan;
    assert_eq!(names(&plan.extra), "web-3");
    lab.vm("web-3").await;

    // What would change is refused, with each field; what was set since counts.
    let mut changed = mine.clone();
    changed["vms"][2]["memory"] = json!("2G");
    changed["vms"][1]["env"] = json!({ "A": "c" });
    let refused = up(&lab, changed).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    assert!(refused.message.contains("db: `memory` is 1G and would be 2G"), "{}", refused.message);
    assert_eq!(refused.details.unwrap()["differences"].as_array().unwrap().len(), 3);
    lab.call::<vm::Set>(json!({ "vm": "db", "labels": { "ci": "1" }, "wait": true }), None).await.unwrap();
    assert_eq!(up(&lab, mine.clone()).await.unwrap_err().code, ErrorCode::FailedPrecondition);
    let mut follows = mine;
    follows["vms"][2]["labels"] = json!({ "ci": "1" });
    assert!(up(&lab, follows).await.unwrap().operation.is_none());

    // Names of others are refused, all of them at once.
    lab.create("x", json!({})).await.unwrap();
    let other =
        json!({ "lab": "other", "defaults": { "image": "debian" }, "vms": [{ "name": "x" }, { "name": "db" }] });
    let taken = up(&lab, other).await.unwrap_err();
    assert_eq!(taken.code, ErrorCode::AlreadyExists);
    assert!(taken.message.contains("x (of no lab)") && taken.message.contains("db (of lab shop)"), "{}", taken.message);

    // Stopped as a whole, and up again.
    lab.call::<lab::Down>(json!({ "lab": "shop", "stop": true, "wait": true }), None).await.unwrap();
    let labs = lab.call::<lab::List>(json!({}), None).await.unwrap().labs;
    assert_eq!((labs[0].vms, labs[0].running), (5, 0));
}

#[tokio::test]
async fn a_protected_vm_keeps_the_whole_lab() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    let mut request = shop();
    request["vms"][2]["deletion_protection"] = json!(true);
    up(&lab, request).await.unwrap();
    let refused = down(&lab, "shop").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    assert_eq!(agent.vms().len(), 4);
    // An operation that was accepted before it was protected finds it too.
    let deletes = "select count(*) from operations.operation where kind = 'vm.delete'";
    assert_eq!(lab.count(deletes).await, 0);
}

#[tokio::test]
async fn without_room_for_all_there_is_none_and_no_address_is_burnt() {
    let lab = Lab::start().await;
    let small = |memory: u32| Capacity { memory: contract::MebiBytes(memory), ..roomy() };
    let (a, b) = (lab.host("a", small(1000)).await, lab.host("b", small(600)).await);
    let request = |memory: &[u32]| {
        let vms: Vec<Value> =
            memory.iter().enumerate().map(|(n, m)| json!({ "name": format!("x{n}"), "memory": m })).collect();
        json!({ "lab": "tight", "defaults": { "image": "debian" }, "vms": vms })
    };
    let error = up(&lab, request(&[500, 500, 500, 500])).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
    assert!(error.message.contains("VM x3: no host has room"), "{}", error.message);
    assert_eq!(lab.count("select count(*) from vm.lease where freed_at > '-infinity'").await, 0);
    nothing_left(&lab, &[&a, &b]).await;
    // Each is placed beside the others, the large one first: else the last would find no room.
    up(&lab, request(&[300, 300, 300, 600])).await.unwrap();
    assert_eq!((a.vms().len(), b.vms().len()), (2, 2), "{:?}", lab.listed_host("a").await);
    down(&lab, "tight").await.unwrap();
    nothing_left(&lab, &[&a, &b]).await;
}

#[tokio::test]
async fn one_vm_that_does_not_boot_takes_the_whole_lab_back() {
    let lab = Lab::start().await;
    let (well, ill) = (lab.host("well", roomy()).await, lab.host("ill", roomy()).await);
    let mut request = shop();
    request["defaults"]["host"] = json!("well");
    request["vms"][2]["deletion_protection"] = json!(true);
    request["vms"][2]["disks"] = json!([]);
    request["vms"][0]["host"] = json!("ill");
    ill.set_mood(Mood::Panics);
    let error = up(&lab, request.clone()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    assert!(error.message.starts_with("lab shop did not come up: vm.create of VM lb failed: "), "{}", error.message);
    let details = error.details.unwrap();
    assert_eq!((&details["vm"], &details["console_tail"]), (&json!("lb"), &json!("Kernel panic - not syncing")));
    nothing_left(&lab, &[&well, &ill]).await;

    // What was there stays, and what was started is stopped again.
    ill.set_mood(Mood::Well);
    up(&lab, request.clone()).await.unwrap();
    lab.order::<vm::Stop>("web-1").await.unwrap();
    request["vms"].as_array_mut().unwrap().push(json!({ "name": "new", "host": "ill", "after": ["web-1"] }));
    ill.set_mood(Mood::Panics);
    up(&lab, request.clone()).await.unwrap_err();
    assert_eq!(lab.state("new").await, None);
    assert_eq!(lab.vm("web-1").await.state, VmState::Stopped);
    assert_eq!(lab.vm("lb").await.state, VmState::Running);
    ill.set_mood(Mood::Well);
    up(&lab, request).await.unwrap();
    assert_eq!(lab.vm("web-1").await.state, VmState::Running);
}

#[tokio::test]
async fn a_cancel_calls_the_creates_off_and_a_repeated_key_is_the_same_operation() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    agent.set_mood(Mood::Hangs);
    let first = lab.call::<lab::Up>(shop(), Some("k")).await.unwrap().operation.unwrap();
    let second = lab.call::<lab::Up>(shop(), Some("k")).await.unwrap().operation.unwrap();
    assert_eq!(first.id, second.id);
    wait_until("the boot", BOUND, async || agent.log().iter().any(|c| c.verb == "await_ready").then_some(())).await;
    assert_eq!(lab.count("select count(*) from vm.vm").await, 4, "all are reserved");
    assert_eq!(agent.vms().len(), 1, "only db has begun");
    lab.call::<operation::Cancel>(json!({ "id": first.id }), None).await.unwrap();
    assert_eq!(lab.ended(first.id).await.state, OperationState::Cancelled);
    lab.sql.execute("delete from vm.disk", &[]).await.unwrap();
    lab.sql.execute("update vm.host set disk_held = 0", &[]).await.unwrap();
    nothing_left(&lab, &[&agent]).await;
}

#[tokio::test]
async fn a_late_repeat_of_what_had_nothing_to_do_does_nothing() {
    let lab = Lab::start().await;
    let _agent = lab.host("h1", roomy()).await;
    let nothing = json!({ "lab": "shop" });
    let first = lab.call::<lab::Down>(nothing.clone(), Some("d")).await.unwrap();
    assert!(first.vms.is_empty());
    let ended = lab.ended(first.operation.as_ref().unwrap().id).await;
    assert_eq!((ended.state, ended.error), (OperationState::Succeeded, None));
    up(&lab, shop()).await.unwrap();
    let late = lab.call::<lab::Down>(nothing, Some("d")).await.unwrap();
    assert_eq!(late.operation.unwrap().id, ended.id);
    assert_eq!(lab.count("select count(*) from vm.vm").await, 4);

    let idle = lab.call::<lab::Up>(shop(), Some("u")).await.unwrap();
    assert!(idle.plan.is_idle() && idle.plan.unchanged.len() == 4, "{idle:?}");
    let ended = lab.ended(idle.operation.unwrap().id).await;
    assert_eq!(ended.state, OperationState::Succeeded);
    down(&lab, "shop").await.unwrap();
    let late = lab.call::<lab::Up>(shop(), Some("u")).await.unwrap();
    assert_eq!(late.operation.unwrap().id, ended.id);
    assert_eq!(lab.count("select count(*) from vm.vm").await, 0);
}

#[tokio::test]
async fn a_delete_of_a_vm_whose_turn_has_not_come_waits_behind_its_create() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    agent.set_mood(Mood::Hangs);
    let operation = begun(&lab, shop()).await;
    wait_until("the boot", BOUND, async || agent.log().iter().any(|c| c.verb == "await_ready").then_some(())).await;
    let delete = lab.call::<vm::Delete>(json!({ "vm": "lb" }), None).await.unwrap();
    let ahead = lab.call::<operation::Get>(json!({ "id": delete.waits_for.unwrap() }), None).await.unwrap();
    assert_eq!((ahead.kind.as_str(), ahead.state, ahead.phase.as_str()), ("vm.create", OperationState::Queued, "held"));
    agent.set_mood(Mood::Well);
    assert_eq!(lab.ended(operation.id).await.state, OperationState::Succeeded);
    assert_eq!(lab.ended(delete.id).await.state, OperationState::Succeeded);
    assert_eq!(lab.state("lb").await, None);
    assert_eq!(lab.count("select count(*) from vm.lab_member").await, 3);
    // Down waits for an up that is under way, and finds what it made.
    let up = begun(&lab, shop()).await;
    let gone = down(&lab, "shop").await.unwrap();
    assert_eq!(lab.ended(up.id).await.state, OperationState::Succeeded);
    assert_eq!(gone.operation.unwrap().state, OperationState::Succeeded);
    assert_eq!(lab.count("select count(*) from vm.vm").await, 0);
}

#[tokio::test]
async fn a_missing_image_is_pulled_once_for_all() {
    let lab = Lab::start().await;
    let agent = lab.host("h1", roomy()).await;
    let request = json!({
        "lab": "fresh", "defaults": { "image": "r.example:5000/app:1" },
        "vms": [{ "name": "a" }, { "name": "b" }, { "name": "c", "image": "debian" }],
    });
    let operation = begun(&lab, request.clone()).await;
    let pull = wait_until("the pull", BOUND, async || lab.images.pulls().first().map(|(_, id)| *id)).await;
    assert_eq!(lab.count("select count(*) from vm.vm").await, 0, "nothing is held meanwhile");
    lab.call::<operation::Cancel>(json!({ "id": operation.id }), None).await.unwrap();
    assert_eq!(lab.ended(operation.id).await.state, OperationState::Cancelled);
    assert_eq!(lab.ended(pull).await.state, OperationState::Cancelled, "nobody needs it any more");

    let operation = begun(&lab, request).await;
    let pull = wait_until("the pull", BOUND, async || lab.images.pulls().get(1).map(|(_, id)| *id)).await;
    lab.images.put_from(&lab.sql, "app-1", "r.example:5000/app:1", &["h1"]).await;
    end_pull(&lab.sql, pull, Ok(lab.images.image("app-1"))).await;
    assert_eq!(lab.ended(operation.id).await.state, OperationState::Succeeded);
    assert_eq!(lab.images.pulls().len(), 2);
    assert_eq!((lab.vm("a").await.image_name.as_str(), agent.vms().len()), ("app-1", 3));
    assert_eq!(agent.vms().values().filter(|state| **state == HostVmState::Ready).count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labs_that_want_each_others_names_on_crossing_hosts_have_one_winner_and_no_deadlock() {
    let lab = Lab::with(|config| config.address_rest = std::time::Duration::ZERO).await;
    let (a, b) = (lab.host("a", roomy()).await, lab.host("b", roomy()).await);
    let request = |name: &str, hosts: [&str; 3]| {
        let vms: Vec<Value> =
            ["x", "y", "z"].iter().zip(hosts).map(|(vm, host)| json!({ "name": vm, "host": host })).collect();
        json!({ "lab": name, "defaults": { "image": "debian" }, "vms": vms })
    };
    for round in 0..6 {
        let outcomes = tokio::join!(
            up(&lab, request("one", ["a", "b", "a"])),
            up(&lab, request("two", ["b", "a", "b"])),
            up(&lab, request("three", ["b", "b", "a"])),
            lab.create("y", json!({ "host": "a" })),
            lab.create("z", json!({ "host": "b" })),
        );
        let labs = [("one", outcomes.0), ("two", outcomes.1), ("three", outcomes.2)];
        let won: Vec<&str> = labs.iter().filter(|(_, outcome)| outcome.is_ok()).map(|(name, _)| *name).collect();
        let singles = [outcomes.3, outcomes.4];
        assert!(won.len() == 1 || (won.is_empty() && singles.iter().any(Result::is_ok)), "{round}: {won:?}");
        let lost = labs.iter().filter_map(|(_, outcome)| outcome.as_ref().err());
        for error in lost.chain(singles.iter().filter_map(|one| one.as_ref().err())) {
            assert_eq!(error.code, ErrorCode::AlreadyExists, "{round}: {error}");
        }
        for name in &won {
            assert_eq!(down(&lab, name).await.unwrap().vms.len(), 3);
        }
        for one in singles.iter().flatten() {
            lab.order::<vm::Delete>(&vm_of(one).to_string()).await.unwrap();
        }
        nothing_left(&lab, &[&a, &b]).await;
    }
    lab.sql.batch_execute("select pg_stat_clear_snapshot()").await.unwrap();
    assert_eq!(lab.count("select deadlocks from pg_stat_database where datname = current_database()").await, 0);
}

#[tokio::test]
async fn a_name_that_a_lab_has_locked_is_waited_for() {
    let lab = Lab::start().await;
    let _agent = lab.host("h1", roomy()).await;
    let image = lab.sql.query_one("select image_id from image.replica", &[]).await.unwrap().get::<_, uuid::Uuid>(0);
    let one = json!([{ "id": VmId::new(), "name": "web", "host": "h1", "image": image, "image_name": "debian" }]);
    lab.sql.batch_execute("begin").await.unwrap();
    let taken: Vec<String> = lab.sql.query_one("select vm.lab_lock($1, '{}')", &[&one]).await.unwrap().get(0);
    assert!(taken.is_empty());
    let looker = common::connect(&lab.postgres.url()).await;
    let create = lab.create("web", json!({}));
    let unlocked = async {
        let waiting =
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%vm.reserve%'";
        wait_until("a create that waits", BOUND, async || {
            (looker.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 1).then_some(())
        })
        .await;
        lab.sql.batch_execute("rollback").await.unwrap();
    };
    let (created, ()) = tokio::join!(create, unlocked);
    created.unwrap();
    // Now it is taken, and nothing is locked for it.
    let taken: Vec<String> = lab.sql.query_one("select vm.lab_lock($1, '{}')", &[&one]).await.unwrap().get(0);
    assert_eq!(taken, ["web"]);
}

#[tokio::test]
async fn what_cannot_be_taken_back_now_is_owed_and_nobody_counts_on_it() {
    let lab = Lab::start().await;
    let (well, ill) = (lab.host("well", roomy()).await, lab.host("ill", roomy()).await);
    ill.set_mood(Mood::Hangs);
    let request = json!({
        "lab": "two", "defaults": { "image": "debian" },
        "vms": [{ "name": "a", "host": "well" }, { "name": "b", "host": "ill", "after": ["a"] }],
    });
    let operation = begun(&lab, request.clone()).await;
    wait_until("the second boot", BOUND, async || ill.log().iter().any(|c| c.verb == "await_ready").then_some(()))
        .await;
    // The host of the one that runs already goes, then the other one fails.
    well.set_mood(Mood::Away);
    well.set_silent(true);
    let silent = "update vm.host set last_seen = now() - interval '1 h' where id = 'well'";
    wait_until("a silent host", BOUND, async || {
        lab.sql.execute(silent, &[]).await.unwrap();
        lab.listed_host("well")
            .await
            .last_seen
            .lt(&(time::OffsetDateTime::now_utc() - time::Duration::MINUTE))
            .then_some(())
    })
    .await;
    ill.set_mood(Mood::Panics);
    assert_eq!(lab.ended(operation.id).await.state, OperationState::Failed);
    assert_eq!(lab.count("select count(*) from operations.operation where undo_owed").await, 1);
    assert_eq!((lab.state("a").await, lab.state("b").await), (Some(VmState::Running), None));
    ill.set_mood(Mood::Well);
    let refused = up(&lab, request.clone()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    assert!(refused.message.contains("VM a is left over from an up that failed"), "{}", refused.message);
    // It is back: what was owed is done, and the lab comes up anew.
    well.set_mood(Mood::Well);
    well.set_silent(false);
    wait_until("the undo", BOUND, async || lab.state("a").await.is_none().then_some(())).await;
    wait_until("the lab", BOUND, async || up(&lab, request.clone()).await.ok()).await;
    down(&lab, "two").await.unwrap();
    nothing_left(&lab, &[&well, &ill]).await;
}

//! What rows and hosts have of images that the other lacks: found, told, mended, and nothing else touched.

use std::time::Duration;

use contract::{
    ErrorCode, ImageId, OperationId,
    host::HostState,
    image::{GcKind, GcOutcome, GcReport, Image, List, Pull, Tag},
    operation::OperationState,
};
use serde_json::json;
use testkit::wait_until;

use crate::{
    deletes::insert_vm,
    fake_host::FakeHost,
    lab::{BOUND, Lab, count, image_of, registry},
};

/// What was found of each kind, with what became of it.
pub fn told(report: &GcReport) -> Vec<(GcKind, String, GcOutcome)> {
    report.items.iter().map(|item| (item.kind, item.what.clone(), item.outcome)).collect()
}

fn why(report: &GcReport) -> &str {
    report.items[0].why.as_deref().unwrap()
}

/// An operation of a kind nobody works on, in that state.
pub async fn operation(lab: &Lab, state: &str) -> OperationId {
    let id = OperationId::new();
    let ended = if matches!(state, "queued" | "running") { "null" } else { "clock_timestamp() - interval '1 second'" };
    let insert = format!(
        "insert into operations.operation (id, kind, resource, state, request, deadline_at, finished_at, epoch, lease_until) \
         values ($1, 'nobody''s', $2, $3, '{{}}', now() + interval '1 hour', {ended}, 4, now() + interval '1 hour')"
    );
    lab.sql().await.execute(&insert, &[&id.0, &format!("test:{id}"), &state]).await.unwrap();
    id
}

pub async fn pull_on(lab: &Lab, source: &str, name: &str, host: &str) -> Result<Image, contract::ApiError> {
    let request = json!({ "source": { "registry": registry(source) }, "name": name, "host": host, "if_newer": true, "wait": true });
    lab.call::<Pull>(request, None).await.map(|operation| image_of(&operation))
}

#[tokio::test]
async fn a_lab_in_order_has_nothing_to_tell() {
    let lab = Lab::start().await;
    lab.host.set_age(1_000_000);
    lab.pull(&registry("a"), "a").await.unwrap();
    lab.pull(&registry("b"), "b").await.unwrap();
    lab.host.block(&registry("slow"));
    let pulling = lab.pulling(&registry("slow"), "slow").await;
    for dry_run in [true, false] {
        let report = lab.gc(dry_run).await;
        assert_eq!((told(&report), report.counts.as_slice(), report.dry_run), (vec![], [].as_slice(), dry_run));
        let host = &report.hosts[0];
        assert_eq!((&host.host, host.skipped.as_ref(), host.images, host.stagings), (&lab.host.id, None, 2, 1));
        assert_eq!((host.image_bytes, host.staging_bytes), (8192, 512));
    }
    lab.host.release(&registry("slow"));
    image_of(&lab.ended(pulling).await);
}

#[tokio::test]
async fn stagings_go_when_nobody_works_in_them() {
    let lab = Lab::start().await;
    let mut ended = Vec::new();
    for state in ["succeeded", "failed", "cancelled"] {
        ended.push(operation(&lab, state).await);
    }
    let open = [operation(&lab, "queued").await, operation(&lab, "running").await];
    let unknown = OperationId::new();
    for id in ended.iter().chain(&open).chain([&unknown]) {
        lab.host.leave_staging(*id);
    }
    let expected = |outcome| {
        let all = ended.iter().map(|id| (GcKind::Staging, id.to_string(), outcome));
        all.chain([(GcKind::Staging, unknown.to_string(), GcOutcome::Left)]).collect::<Vec<_>>()
    };
    assert_eq!(told(&lab.gc(true).await), expected(GcOutcome::Pending));
    assert_eq!(lab.host.staging().len(), 6);
    let report = lab.gc(false).await;
    assert_eq!(told(&report), expected(GcOutcome::Mended));
    let count = report.count(GcKind::Staging);
    assert_eq!((count.found, count.mended), (4, 3));
    assert!(report.items[3].why.as_ref().unwrap().contains("6.0 h"), "{report:?}");
    // Old enough, what nobody knows goes too.
    lab.host.set_age(6 * 3600);
    assert_eq!(told(&lab.gc(false).await), [(GcKind::Staging, unknown.to_string(), GcOutcome::Mended)]);
    assert_eq!(lab.host.staging(), open);
}

#[tokio::test]
async fn directories_without_a_row_go_once_who_made_them_has_ended() {
    let lab = Lab::start().await;
    let (done, open) = (operation(&lab, "failed").await, operation(&lab, "running").await);
    let [leaked, busy, foreign, bare] = [(); 4].map(|()| ImageId::new());
    lab.host.leave_image(leaked, &[done]);
    lab.host.leave_image(busy, &[done, open]);
    lab.host.leave_image(foreign, &[OperationId::new()]);
    lab.host.leave_image(bare, &[]);
    lab.host.damage(bare);
    lab.host.stray("images/notes");
    let expected = |leak| {
        [
            (GcKind::Directory, format!("images/{leaked}"), leak),
            (GcKind::Directory, format!("images/{foreign}"), GcOutcome::Left),
            (GcKind::Directory, format!("images/{bare}"), GcOutcome::Left),
            (GcKind::Stray, "images/notes".to_owned(), GcOutcome::Left),
        ]
    };
    // It may be somebody's who is about to say so.
    assert_eq!(told(&lab.gc(false).await), expected(GcOutcome::Left));
    lab.host.set_age(60);
    assert_eq!(told(&lab.gc(true).await), expected(GcOutcome::Pending));
    assert_eq!(told(&lab.gc(false).await), expected(GcOutcome::Mended));
    assert_eq!(lab.host.images(), [busy, foreign, bare]);
}

#[tokio::test]
async fn a_lost_directory_is_noted_offered_to_nobody_and_pulled_again() {
    let lab = Lab::start().await;
    let image = image_of(&lab.pull(&registry("debian"), "debian").await.unwrap());
    lab.host.lose(image.id);
    let missing = |outcome| [(GcKind::Missing, image.id.to_string(), outcome)];
    assert_eq!(told(&lab.gc(true).await), missing(GcOutcome::Pending));
    assert_eq!(lab.image("debian").await.unwrap(), image);
    assert_eq!(told(&lab.gc(false).await), missing(GcOutcome::Mended));
    let shown = lab.image("debian").await.unwrap();
    assert_eq!((shown.hosts.as_slice(), shown.missing.as_slice()), ([].as_slice(), [lab.host.id.clone()].as_slice()));
    let report = lab.gc(false).await;
    assert_eq!(told(&report), missing(GcOutcome::Left));
    assert!(why(&report).contains("pull it to h1"), "{report:?}");
    let push = json!({ "image": "debian", "reference": registry("out"), "wait": true, "timeout_ms": 600 });
    lab.call::<contract::image::Push>(push, None).await.unwrap_err();

    // Under another name, as anybody would who does not know: the image is whole again.
    let pulled = image_of(&lab.pull(&registry("debian"), "again").await.unwrap());
    assert_eq!((pulled.id, pulled.hosts.as_slice()), (image.id, std::slice::from_ref(&lab.host.id)));
    assert_eq!((lab.host.asked(&registry("debian")), lab.host.images()), (2, vec![image.id]));
    assert_eq!(told(&lab.gc(false).await), []);

    // Damaged, and brought back by somebody.
    lab.host.damage(image.id);
    assert_eq!(told(&lab.gc(false).await), missing(GcOutcome::Mended));
    lab.host.bring_back(image.id, &registry("debian"));
    assert_eq!(told(&lab.gc(false).await), [(GcKind::Returned, image.id.to_string(), GcOutcome::Mended)]);
    assert_eq!(lab.image("debian").await.unwrap().hosts.len(), 1);
    // Damaged, and pulled.
    lab.host.damage(image.id);
    lab.gc(false).await;
    assert_eq!(pull_on(&lab, "debian", "debian", "h1").await.unwrap().id, image.id);
    assert_eq!(told(&lab.gc(false).await), []);
    // Lost, and deleted.
    lab.host.lose(image.id);
    lab.gc(false).await;
    lab.delete(&image.digest).await.unwrap();
    lab.assert_nothing_left().await;
    wait_until("the events", BOUND, async || {
        let told = lab.events().await;
        let times = |what: &str| told.iter().filter(|event| *event == what).count();
        ((times("missing"), times("returned")) == (4, 1)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_lost_directory_that_vms_build_on_is_not_replaced_by_another() {
    let lab = Lab::start().await;
    let other = FakeHost::start(&lab.bus, "h2").await;
    lab.registry.put("h2", HostState::Up, 512);
    let image = image_of(&lab.pull(&registry("debian"), "debian").await.unwrap());
    let sql = lab.sql().await;
    insert_vm(&sql, "web", image.id).await;
    lab.host.lose(image.id);
    let report = lab.gc(false).await;
    assert!(why(&report).contains("the disk of 1 VM builds on it"), "{report:?}");
    let refused = pull_on(&lab, "debian", "debian", "h1").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::FailedPrecondition);
    assert!(refused.message.contains("web"), "{refused}");
    assert_eq!((lab.host.images(), lab.host.staging()), (vec![], vec![]));
    // Elsewhere it can be had.
    let pulled = pull_on(&lab, "debian", "debian", "h2").await.unwrap();
    assert_eq!((pulled.id, pulled.hosts.as_slice()), (image.id, std::slice::from_ref(&other.id)));
    sql.execute("delete from vm.vm", &[]).await.unwrap();
    assert_eq!(pull_on(&lab, "debian", "debian", "h1").await.unwrap().hosts.len(), 2);
    assert_eq!(told(&lab.gc(false).await), []);
}

#[tokio::test]
async fn an_image_that_lost_its_last_name_goes_in_time() {
    let lab = Lab::start_with(|gc| gc.age = Some(Duration::from_secs(3600))).await;
    const LONG_AGO: &str = "update image.image set unnamed_at = unnamed_at - interval '2 hours'";
    let old = pull_on(&lab, "debian", "debian", "h1").await.unwrap();
    assert_eq!(old.unnamed_at, None);
    lab.host.push(&registry("debian"), "of today");
    let new = pull_on(&lab, "debian", "debian", "h1").await.unwrap();
    assert_ne!(old.id, new.id);
    assert_eq!(told(&lab.gc(false).await), [], "it is young");
    let listed = lab.call::<List>(json!({ "all": true }), None).await.unwrap().images;
    let since: Vec<_> = listed.iter().map(|image| (image.id, image.unnamed_at.is_some())).collect();
    assert!(since.contains(&(old.id, true)) && since.contains(&(new.id, false)), "{since:?}");
    // While a VM uses it, it stays.
    let sql = lab.sql().await;
    insert_vm(&sql, "web", old.id).await;
    sql.execute(LONG_AGO, &[]).await.unwrap();
    assert_eq!(told(&lab.gc(false).await), []);
    sql.execute("delete from vm.vm", &[]).await.unwrap();
    // And while it has a name again.
    let tag = json!({ "image": old.digest, "name": "kept", "wait": true });
    lab.call::<Tag>(tag, None).await.unwrap();
    assert_eq!(told(&lab.gc(false).await), []);
    assert_eq!(lab.image("kept").await.unwrap().unnamed_at, None);
    lab.call::<Tag>(json!({ "image": "debian", "name": "kept", "replace": true, "wait": true }), None).await.unwrap();
    assert_eq!(told(&lab.gc(false).await), []);
    sql.execute(LONG_AGO, &[]).await.unwrap();
    assert_eq!(told(&lab.gc(true).await), [(GcKind::Unnamed, old.id.to_string(), GcOutcome::Pending)]);
    assert_eq!(told(&lab.gc(false).await), [(GcKind::Unnamed, old.id.to_string(), GcOutcome::Mended)]);
    assert_eq!(
        (lab.host.images(), lab.image(&old.digest).await.unwrap_err().code),
        (vec![new.id], ErrorCode::NotFound)
    );
    assert_eq!(lab.image("debian").await.unwrap().id, new.id);
    lab.delete(&new.digest).await.unwrap();
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn images_without_a_name_stay_for_ever_where_that_is_asked() {
    let lab = Lab::start_with(|gc| gc.age = None).await;
    pull_on(&lab, "debian", "debian", "h1").await.unwrap();
    lab.host.push(&registry("debian"), "of today");
    pull_on(&lab, "debian", "debian", "h1").await.unwrap();
    assert_eq!((told(&lab.gc(false).await), told(&lab.gc(false).await)), (vec![], vec![]));
    let sql = lab.sql().await;
    assert_eq!(count(&sql, "select count(*) from image.image where unnamed_at is not null").await, 1);
}

#[tokio::test]
async fn hosts_that_are_down_away_old_or_gone_are_named() {
    let lab = Lab::start_with(|gc| gc.grace = Duration::ZERO).await;
    let other = FakeHost::start(&lab.bus, "h2").await;
    let _old = FakeHost::old(&lab.bus, "h3").await;
    for host in ["h2", "h3"] {
        lab.registry.put(host, HostState::Up, 512);
    }
    let image = pull_on(&lab, "debian", "debian", "h1").await.unwrap();
    pull_on(&lab, "debian", "debian", "h2").await.unwrap();
    lab.registry.put("h2", HostState::Down, 512);
    lab.host.set_away(true);
    lab.registry.put("h4", HostState::Up, 512);
    let report = lab.gc(false).await;
    assert_eq!(told(&report), []);
    let skipped = report.hosts.iter().map(|host| (host.host.as_str(), host.skipped.clone().unwrap()));
    let mut skipped: Vec<_> = skipped.collect();
    skipped.sort();
    assert_eq!(skipped.iter().map(|(host, _)| *host).collect::<Vec<_>>(), ["h1", "h2", "h3", "h4"]);
    for ((_, why), words) in skipped.iter().zip(["away", "down", "does not list", "does not list"]) {
        assert!(why.contains(words), "{why}");
    }
    // The row of a host that is gone goes, once no VM refers to it.
    lab.host.set_away(false);
    let sql = lab.sql().await;
    insert_vm(&sql, "web", image.id).await;
    lab.registry.forget("h1");
    lab.registry.put("h2", HostState::Up, 512);
    let report = lab.gc(false).await;
    assert_eq!(told(&report), [(GcKind::HostGone, image.id.to_string(), GcOutcome::Left)]);
    sql.execute("delete from vm.vm", &[]).await.unwrap();
    assert_eq!(told(&lab.gc(true).await)[0].2, GcOutcome::Pending);
    assert_eq!(told(&lab.gc(false).await), [(GcKind::HostGone, image.id.to_string(), GcOutcome::Mended)]);
    assert_eq!(lab.image("debian").await.unwrap().hosts, std::slice::from_ref(&other.id));
    // What a host owes that is gone for good is forgotten.
    lab.registry.put("h2", HostState::Down, 512);
    other.set_away(true);
    let deleted = lab.delete("debian").await.unwrap();
    assert_eq!(deleted.result.unwrap()["owed"], json!(["h2"]));
    assert_eq!(told(&lab.gc(false).await), [(GcKind::Owed, format!("images/{}", image.id), GcOutcome::Left)]);
    lab.registry.forget("h2");
    assert_eq!(told(&lab.gc(false).await), [(GcKind::Owed, format!("images/{}", image.id), GcOutcome::Mended)]);
    assert_eq!(told(&lab.gc(false).await), []);
}

#[tokio::test]
async fn it_comes_round_by_itself_when_a_host_comes_up_or_a_name_moves() {
    let lab = Lab::start_with(|gc| {
        (gc.every, gc.age) = (Some(Duration::from_secs(3600)), Some(Duration::ZERO));
    })
    .await;
    wait_until("the first round", BOUND, async || (lab.host.listed() > 0).then_some(())).await;
    let sql = lab.sql().await;
    let rounds = "select count(*) from image.reconciler where ended_at is not null and until <= clock_timestamp()";
    wait_until("its end", BOUND, async || (count(&sql, rounds).await == 1).then_some(())).await;
    let left = operation(&lab, "failed").await;
    lab.host.leave_staging(left);
    let up = contract::subject::event("host", lab.host.id.clone(), "up");
    // Rounds rest some time: a nudge that comes too early has its round then, and not an hour later.
    lab.bus.notify(up).await;
    wait_until("the round of the nudge", BOUND, async || lab.host.staging().is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_collection_is_an_operation_that_gives_way() {
    let lab = Lab::start_with(|gc| gc.age = Some(Duration::ZERO)).await;
    let old = pull_on(&lab, "debian", "debian", "h1").await.unwrap();
    lab.host.push(&registry("debian"), "of today");
    pull_on(&lab, "debian", "debian", "h1").await.unwrap();
    // It is being pushed: nothing is collected meanwhile.
    lab.host.block(&registry("out"));
    let push = json!({ "image": old.digest, "reference": registry("out") });
    let pushing = lab.call::<contract::image::Push>(push, None).await.unwrap().id;
    wait_until("the push", BOUND, async || (lab.host.asked(&registry("out")) > 0).then_some(())).await;
    lab.gc(false).await;
    assert_eq!(told(&lab.gc(false).await), []);
    lab.host.release(&registry("out"));
    assert_eq!(lab.ended(pushing).await.state, OperationState::Succeeded);
    assert_eq!(told(&lab.gc(false).await), [(GcKind::Unnamed, old.id.to_string(), GcOutcome::Mended)]);
    let sql = lab.sql().await;
    let collected = "select count(*) from operations.operation where kind = 'image.collect' and state = 'succeeded'";
    assert_eq!(count(&sql, collected).await, 1);
}

//! Engines and hosts that go away in the middle and come back.

use contract::operation::{Cancel, OperationState};
use serde_json::json;
use testkit::wait_until;

use crate::lab::{BOUND, Lab, count, image_of, registry};

#[tokio::test]
async fn postgresql_is_restarted_in_the_middle_of_a_download() {
    let mut lab = Lab::start().await;
    let source = registry("slow");
    lab.host.block(&source);
    let id = lab.pulling(&source, "slow").await;
    lab.postgres.as_mut().unwrap().restart().await;
    lab.host.release(&source);
    image_of(&lab.ended(id).await);
    lab.delete("slow").await.unwrap();
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn postgresql_is_restarted_while_files_are_renamed() {
    let mut lab = Lab::start().await;
    let source = registry("debian");
    lab.host.block_renames(true);
    let id = lab.pulling(&source, "debian").await;
    wait_until("the rename", BOUND, async || (lab.host.renaming() == 1).then_some(())).await;
    lab.postgres.as_mut().unwrap().restart().await;
    lab.host.block_renames(false);
    let image = image_of(&lab.ended(id).await);
    assert_eq!((lab.host.images(), lab.host.staging()), (vec![image.id], vec![]));
}

#[tokio::test]
async fn nats_is_restarted_in_the_middle_of_a_download() {
    let mut lab = Lab::start().await;
    let source = registry("slow");
    lab.host.block(&source);
    let id = lab.pulling(&source, "slow").await;
    lab.nats.restart().await;
    lab.host.release(&source);
    image_of(&lab.ended(id).await);
    assert_eq!(lab.host.staging(), []);
}

#[tokio::test]
async fn a_host_that_goes_away_is_waited_for() {
    let lab = Lab::start().await;
    let source = registry("slow");
    lab.host.block(&source);
    let id = lab.pulling(&source, "slow").await;
    lab.host.set_away(true);
    wait_until("two refusals", BOUND, async || (lab.host.refused() >= 2).then_some(())).await;
    assert_eq!(lab.operation(id).await.state, OperationState::Running);
    lab.host.release(&source);
    lab.host.set_away(false);
    image_of(&lab.ended(id).await);
}

#[tokio::test]
async fn a_host_that_is_away_at_the_undo_owes_it() {
    let lab = Lab::start().await;
    let source = registry("slow");
    lab.host.block(&source);
    let id = lab.pulling(&source, "slow").await;
    lab.host.set_away(true);
    lab.call::<Cancel>(json!({ "id": id }), None).await.unwrap();
    let ended = lab.ended(id).await;
    assert_eq!(ended.state, OperationState::Cancelled);
    let owed: Vec<_> = ended.steps.iter().filter(|step| step.state == "owed").map(|step| &step.name).collect();
    assert!(owed.contains(&&"stage".to_owned()), "{owed:?}");
    assert_eq!(lab.host.staging(), [id]);
    lab.host.set_away(false);
    let sql = lab.sql().await;
    wait_until("nothing owed", BOUND, async || {
        (count(&sql, "select count(*) from operations.operation where undo_owed").await == 0).then_some(())
    })
    .await;
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_worker_that_lost_its_lease_commits_nothing() {
    let lab = Lab::start().await;
    lab.host.block_renames(true);
    let id = lab.pulling(&registry("debian"), "debian").await;
    wait_until("the rename", BOUND, async || (lab.host.renaming() == 1).then_some(())).await;
    // The lease runs out while the rename lasts: the next claim waits for the name's lock, which the first one holds.
    let sql = lab.sql().await;
    let expire = "update operations.operation set lease_until = now() - interval '1 second' where id = $1";
    sql.execute(expire, &[&id.0]).await.unwrap();
    let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%image.name%'";
    wait_until("the successor's wait", BOUND, async || (count(&sql, waiting).await == 1).then_some(())).await;
    lab.host.block_renames(false);
    let ended = lab.ended(id).await;
    let image = image_of(&ended);
    assert_eq!((ended.attempts, ended.epoch), (2, 2));
    assert_eq!(lab.host.images(), [image.id]);
    wait_until("the events", BOUND, async || (lab.events().await == ["published"]).then_some(())).await;
}

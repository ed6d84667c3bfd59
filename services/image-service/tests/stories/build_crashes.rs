//! The service killed at each point of a build, and started again: the script is run once, and what was begun ends, done or undone with
//! nothing left.

use contract::{
    ErrorCode, OperationId,
    image::Build,
    operation::{Cancel, OperationState},
};
use futures::{StreamExt, stream};
use serde_json::json;
use testkit::{Postgres, wait_until};

use crate::{
    builds::{assert_only, built, log, vms},
    crashes::{AT_ONCE, Crash},
    fake_vms::FakeVms,
    lab::{BOUND, count, registry},
};

const POINTS: [&str; 28] = [
    "image.build/build/before",
    "image.build/build/after",
    "image.build/build/recorded",
    "image.build/publish/before",
    "image.build/publish/after",
    "image.build/publish/recorded",
    "image.build_step/look/before",
    "image.build_step/look/after",
    "image.build_step/look/recorded",
    "image.build_step/create/before",
    "image.build_step/create/after",
    "image.build_step/create/recorded",
    "image.build_step/run/before",
    "image.build_step/run/started",
    "image.build_step/run/after",
    "image.build_step/run/recorded",
    "image.build_step/stop/before",
    "image.build_step/stop/after",
    "image.build_step/stop/recorded",
    "image.build_step/stage/before",
    "image.build_step/stage/after",
    "image.build_step/stage/recorded",
    "image.build_step/publish/before",
    "image.build_step/publish/renamed",
    "image.build_step/publish/after",
    "image.build_step/publish/recorded",
    "image.build_step/remove/after",
    "image.build_step/remove/recorded",
];

/// A build whose service dies at one point.
struct Story {
    crash: Crash,
    vms: FakeVms,
}

impl Story {
    async fn on(postgres: &Postgres, point: &'static str) -> Self {
        let crash = Crash::on(postgres, point).await;
        let vms = vms(&crash.lab).await;
        Self { crash, vms }
    }

    async fn build(&self, script: &str) -> OperationId {
        self.crash.lab.pull(&registry("debian"), "debian").await.unwrap();
        let request = json!({ "name": "web", "base": "debian", "steps": [{ "script": script }] });
        self.crash.accepted::<Build>("image.build", request).await
    }
}

#[tokio::test]
async fn a_build_killed_at_each_point_ends_well_and_runs_its_script_once() {
    let postgres = &Postgres::start().await;
    let story = |point| async move {
        let story = Story::on(postgres, point).await;
        let (crash, vms) = (&story.crash, &story.vms);
        let child = crash.start().await;
        let id = story.build("say one\nsay two").await;
        crash.died(child).await;
        let _child = crash.start().await;
        let ended = crash.lab.ended(id).await;
        let gave = built(&ended);
        assert_eq!(crash.lab.image("web").await.unwrap(), gave.image, "{point}");
        assert_eq!((vms.started().len(), vms.created().len()), (1, 1), "{point}");
        let text = log(&crash.lab, "web").await;
        assert_eq!(text.matches("one\ntwo\n").count(), 1, "{point}: {text}");
        assert_only(&crash.lab, vms, 2).await;
    };
    stream::iter(POINTS).map(story).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

#[tokio::test]
async fn a_build_killed_at_each_point_and_cancelled_leaves_nothing() {
    let postgres = &Postgres::start().await;
    let story = |point: &'static str| async move {
        let story = Story::on(postgres, point).await;
        let (crash, vms) = (&story.crash, &story.vms);
        let child = crash.start().await;
        let id = story.build("say one").await;
        crash.died(child).await;
        crash.cancel_requested(id).await;
        let _child = crash.start().await;
        let ended = crash.lab.ended(id).await;
        if point == "image.build/publish/recorded" {
            assert_eq!(ended.state, OperationState::Succeeded, "{point}");
        } else {
            assert_eq!(ended.state, OperationState::Cancelled, "{point}: {ended:?}");
            assert_eq!(crash.lab.image("web").await.unwrap_err().code, ErrorCode::NotFound, "{point}");
        }
        // A step that ended before the cancel reached it has given what it gave, and that is known; all else is gone.
        let known = count(&crash.lab.sql().await, "select count(*) from image.build_cache").await;
        assert_only(&crash.lab, vms, if known == 1 { 2 } else { 1 }).await;
    };
    stream::iter(POINTS).map(story).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

#[tokio::test]
async fn a_service_killed_under_a_script_follows_it_on() {
    let postgres = &Postgres::start().await;
    let story = Story::on(postgres, "nowhere").await;
    let (crash, vms) = (&story.crash, &story.vms);
    let mut child = crash.start().await;
    let id = story.build("say before\nwait\nsay after").await;
    wait_until("the output", BOUND, async || log(&crash.lab, "web").await.contains("before\n").then_some(())).await;
    child.kill().await.unwrap();
    vms.release();
    let expire = "update operations.operation set lease_until = now() - interval '1 second' where state = 'running'";
    crash.lab.sql().await.execute(expire, &[]).await.unwrap();
    let _child = crash.start().await;
    built(&crash.lab.ended(id).await);
    let text = log(&crash.lab, "web").await;
    assert_eq!((text.matches("before\nafter\n").count(), vms.started().len()), (1, 1), "{text}");
    assert_only(&crash.lab, vms, 2).await;
}

#[tokio::test]
async fn an_undo_of_a_build_killed_in_the_middle_is_finished() {
    let points = ["image.build/build/undone", "image.build_step/run/undone", "image.build_step/create/undone"];
    let postgres = &Postgres::start().await;
    let story = |point: &'static str| async move {
        let story = Story::on(postgres, point).await;
        let (crash, vms) = (&story.crash, &story.vms);
        let child = crash.start().await;
        let id = story.build("say one\nwait").await;
        wait_until("the script", BOUND, async || (!vms.started().is_empty()).then_some(())).await;
        crash.lab.call::<Cancel>(json!({ "id": id }), None).await.unwrap();
        crash.died(child).await;
        let _child = crash.start().await;
        assert_eq!(crash.lab.ended(id).await.state, OperationState::Cancelled, "{point}");
        assert_only(&crash.lab, vms, 1).await;
    };
    stream::iter(points).map(story).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

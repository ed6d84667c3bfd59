//! Pulls: alone, side by side, and racing for a name.

use contract::{
    ApiError, ErrorCode,
    host::HostState,
    image::{List, Pull},
    operation::{Cancel, OperationState},
};
use serde_json::json;
use testkit::wait_until;

use crate::{
    fake_host::FakeHost,
    lab::{BOUND, Lab, image_of, registry},
};

#[tokio::test]
async fn an_image_is_pulled_shown_listed_and_deleted() {
    let lab = Lab::start().await;
    let source = registry("debian");
    let pulled = lab.pull(&source, "debian").await.unwrap();
    let steps: Vec<_> = pulled.steps.iter().map(|step| (step.name.as_str(), step.state.as_str())).collect();
    assert_eq!(steps, [("place", "done"), ("resolve", "done"), ("stage", "done"), ("publish", "done")]);
    let image = image_of(&pulled);
    assert_eq!((image.name.as_str(), image.source.as_str()), ("debian", source.as_str()));
    assert_eq!((image.architecture.as_str(), image.rootfs_bytes), ("amd64", 1 << 20));
    assert_eq!(image.config.cmd, ["/bin/sh"]);
    assert_eq!(image.hosts, std::slice::from_ref(&lab.host.id));
    assert_eq!(lab.host.images(), [image.id]);
    assert_eq!(lab.host.staging(), []);
    assert_eq!(lab.image("debian").await.unwrap(), image);
    assert_eq!(lab.image(&image.id.to_string()).await.unwrap(), image);

    lab.pull(&registry("alpine"), "alpine").await.unwrap();
    lab.pull(&registry("busybox"), "busybox").await.unwrap();
    let page = lab.call::<List>(json!({ "limit": 2 }), None).await.unwrap();
    let names = |page: &contract::image::ImageList| page.images.iter().map(|i| i.name.to_string()).collect::<Vec<_>>();
    assert_eq!((names(&page), page.more), (vec!["alpine".to_owned(), "busybox".to_owned()], true));
    let page = lab.call::<List>(json!({ "limit": 2, "after": "busybox" }), None).await.unwrap();
    assert_eq!((names(&page), page.more), (vec!["debian".to_owned()], false));

    for name in ["debian", "alpine", "busybox"] {
        assert_eq!(lab.delete(name).await.unwrap().result.unwrap()["owed"], json!([]));
        assert_eq!(lab.image(name).await.unwrap_err().code, ErrorCode::NotFound);
    }
    lab.assert_nothing_left().await;
    let told = ["published", "published", "published", "deleted", "deleted", "deleted"];
    wait_until("the events", BOUND, async || (lab.events().await == told).then_some(())).await;
}

#[tokio::test]
async fn a_layout_on_a_chosen_host_is_pulled() {
    let lab = Lab::start().await;
    lab.registry.put("h2", contract::host::HostState::Up, 999_999);
    let source = json!({ "layout": { "path": "/srv/images/debian", "reference": "12" } });
    let request = json!({ "source": source, "name": "debian", "host": "h1", "wait": true });
    let image = image_of(&lab.call::<Pull>(request, None).await.unwrap());
    assert_eq!(image.source, "oci:/srv/images/debian:12");
    assert_eq!(image.hosts, std::slice::from_ref(&lab.host.id));
}

#[tokio::test]
async fn pulls_of_different_images_overlap() {
    let lab = Lab::start().await;
    let (slow, quick) = (registry("slow"), registry("quick"));
    lab.host.block(&slow);
    let pulling = lab.pulling(&slow, "slow").await;
    // The second enters its download, and ends, while the first is blocked in its own.
    image_of(&lab.pull(&quick, "quick").await.unwrap());
    let shown = wait_until("the progress", BOUND, async || {
        let operation = lab.operation(pulling).await;
        (operation.phase == "downloading").then_some(operation)
    })
    .await;
    assert_eq!((shown.state, shown.progress.map(|p| (p.done, p.total))), (OperationState::Running, Some((1, 2))));
    lab.host.release(&slow);
    image_of(&lab.ended(pulling).await);
    assert_eq!(lab.host.images().len(), 2);
}

#[tokio::test]
async fn of_two_pulls_racing_to_one_name_one_wins() {
    let lab = Lab::start().await;
    let sources = [registry("first"), registry("second")];
    for source in &sources {
        lab.host.block(source);
    }
    let first = lab.pulling(&sources[0], "debian").await;
    let second = lab.pulling(&sources[1], "debian").await;
    // One is held in its rename, with the name's lock in hand; the other waits for that lock.
    lab.host.block_renames(true);
    for source in &sources {
        lab.host.release(source);
    }
    wait_until("the winner's rename", BOUND, async || (lab.host.renaming() == 1).then_some(())).await;
    let sql = lab.sql().await;
    let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%image.name%'";
    wait_until("the loser's wait", BOUND, async || (crate::lab::count(&sql, waiting).await == 1).then_some(())).await;
    assert_eq!(lab.host.renaming(), 1);
    lab.host.block_renames(false);

    let ends = [lab.ended(first).await, lab.ended(second).await];
    let (won, lost): (Vec<_>, Vec<_>) = ends.iter().partition(|end| end.state == OperationState::Succeeded);
    assert_eq!((won.len(), lost.len()), (1, 1));
    let error = lost[0].error.as_ref().unwrap();
    assert_eq!((lost[0].state, error.code), (OperationState::Failed, ErrorCode::AlreadyExists));
    assert!(error.hint.as_ref().unwrap().contains("warren image rm debian"));
    assert_eq!(lab.image("debian").await.unwrap(), image_of(won[0]));
    assert_eq!((lab.host.images(), lab.host.staging()), (vec![image_of(won[0]).id], vec![]));
}

#[tokio::test]
async fn many_pulls_at_once_of_one_digest_to_one_name_make_one_image() {
    let lab = Lab::start().await;
    let source = registry("debian");
    lab.host.block_renames(true);
    let pulls = futures::future::join_all((0..16).map(|_| lab.pull(&source, "debian")));
    let slow_rename = async {
        let sql = lab.sql().await;
        let staged = "select count(*) from operations.operation where phase = 'publish'";
        wait_until("all stagings", BOUND, async || (crate::lab::count(&sql, staged).await == 16).then_some(())).await;
        // Fifteen wait for the name, or for their turn; the service answers all the same.
        for _ in 0..4 {
            let page = lab.call::<List>(json!({}), None).await.unwrap();
            assert_eq!(page.images, []);
        }
        assert_eq!(lab.host.renaming(), 1);
        lab.host.block_renames(false);
    };
    let (ends, ()) = tokio::join!(pulls, slow_rename);
    let image = lab.image("debian").await.unwrap();
    assert!(ends.into_iter().all(|end| image_of(&end.unwrap()) == image));
    assert_eq!((lab.host.images(), lab.host.staging().len()), (vec![image.id], 0));
    lab.delete("debian").await.unwrap();
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_pull_is_cancelled_in_its_download() {
    let lab = Lab::start().await;
    let source = registry("slow");
    lab.host.block(&source);
    let id = lab.pulling(&source, "slow").await;
    lab.call::<Cancel>(json!({ "id": id }), None).await.unwrap();
    let ended = lab.ended(id).await;
    assert_eq!((ended.state, ended.error.unwrap().code), (OperationState::Cancelled, ErrorCode::Cancelled));
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn the_same_request_key_is_the_same_operation() {
    let lab = Lab::start().await;
    let pull = |name: &str| json!({ "source": { "registry": registry("debian") }, "name": name, "wait": true });
    let first = lab.call::<Pull>(pull("debian"), Some("a")).await.unwrap();
    // The name is taken by now, by this very pull.
    assert_eq!(lab.call::<Pull>(pull("debian"), Some("a")).await.unwrap(), first);
    assert_eq!(lab.call::<Pull>(pull("other"), Some("a")).await.unwrap_err().code, ErrorCode::InvalidArgument);
    // Another request finds all as it wants it.
    assert_eq!(image_of(&lab.call::<Pull>(pull("debian"), Some("b")).await.unwrap()), image_of(&first));
    assert_eq!(lab.host.images().len(), 1);

    let delete = json!({ "image": "debian", "wait": true });
    let gone = lab.call::<contract::image::Delete>(delete.clone(), Some("c")).await.unwrap();
    assert_eq!(lab.call::<contract::image::Delete>(delete.clone(), Some("c")).await.unwrap(), gone);
    let again = lab.call::<contract::image::Delete>(delete, Some("d")).await.unwrap_err();
    assert_eq!(again.code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_waiting_request_is_answered_when_its_time_is_up() {
    let lab = Lab::start().await;
    let source = registry("slow");
    lab.host.block(&source);
    let request = json!({ "source": { "registry": source }, "name": "slow", "wait": true, "timeout_ms": 300 });
    let error = lab.call::<Pull>(request, None).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    let id: contract::OperationId = serde_json::from_value(error.details.unwrap()["operation_id"].clone()).unwrap();
    assert!(!lab.operation(id).await.state.is_final());
    lab.host.release(&source);
    image_of(&lab.ended(id).await);
}

#[tokio::test]
async fn a_host_without_room_gives_way_to_the_next_unless_it_was_asked_for() {
    let lab = Lab::start().await;
    let other = FakeHost::start(&lab.bus, "h2").await;
    lab.registry.put("h2", HostState::Up, 512);
    let source = registry("debian");
    let full = || ApiError::resource_exhausted("the host's disk is 97.1 % full");
    lab.host.fail(&source, full());
    let image = image_of(&lab.pull(&source, "debian").await.unwrap());
    assert_eq!(image.hosts, std::slice::from_ref(&other.id));
    assert_eq!((lab.host.staging(), lab.host.images()), (vec![], vec![]));
    let here = json!({ "source": { "registry": source }, "name": "here", "host": "h1", "wait": true });
    assert_eq!(lab.call::<Pull>(here, None).await.unwrap_err().code, ErrorCode::ResourceExhausted);
    // None has room, or one finds something else to be wrong.
    let large = registry("large");
    lab.host.fail(&large, full());
    other.fail(&large, full());
    assert_eq!(lab.pull(&large, "large").await.unwrap_err().code, ErrorCode::ResourceExhausted);
    other.fail(&large, ApiError::invalid_argument("a layer is no tar archive"));
    assert_eq!(lab.pull(&large, "large").await.unwrap_err().code, ErrorCode::InvalidArgument);
    assert_eq!((lab.host.staging(), other.staging()), (vec![], vec![]));
    lab.delete("debian").await.unwrap();
    lab.assert_nothing_left().await;
}

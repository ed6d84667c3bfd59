//! Stories of images sent to a registry.

use contract::{
    ApiError, ErrorCode,
    image::{Push, PushRequest, Rename, Tag},
    operation::{Cancel, Operation, OperationState},
};
use image_service::Server;
use serde_json::json;
use testkit::wait_until;

use crate::lab::{BOUND, Lab, count, registry};

async fn push(lab: &Lab, to: &str, key: Option<&str>, wait: bool) -> Result<Operation, ApiError> {
    lab.call::<Push>(json!({ "image": "debian", "reference": to, "wait": wait }), key).await
}

#[tokio::test]
async fn a_push_tells_the_digests_and_leaves_nothing_on_its_host() {
    let lab = Lab::start().await;
    let image = lab.pull(&registry("debian"), "debian").await.unwrap().result.unwrap();
    let to = registry("mirror");
    let done = push(&lab, &to, Some("once"), true).await.unwrap();
    let result = done.result.clone().unwrap();
    assert_eq!((&result["image_id"], &result["host"]), (&image["id"], &json!("h1")));
    assert_eq!(result["pushed"]["manifest"], format!("sha256:{to}"));
    assert_eq!(result["pushed"]["sent_bytes"], 8);
    // The same request is the same push, also once the image is gone.
    lab.delete("debian").await.unwrap();
    assert_eq!(push(&lab, &to, Some("once"), true).await.unwrap().id, done.id);
    assert_eq!(lab.host.asked(&to), 1);
    assert_eq!(push(&lab, &to, None, true).await.unwrap_err().code, ErrorCode::NotFound);
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_delete_waits_for_a_push_and_a_cancel_ends_it() {
    let lab = Lab::start().await;
    lab.pull(&registry("debian"), "debian").await.unwrap();
    let to = registry("mirror");
    lab.host.block(&to);
    let pushing = push(&lab, &to, None, false).await.unwrap().id;
    wait_until("the push", BOUND, async || (lab.host.asked(&to) > 0).then_some(())).await;
    let delete = lab.call::<contract::image::Delete>(json!({ "image": "debian" }), None).await.unwrap().id;
    assert_eq!(lab.operation(delete).await.state, OperationState::Queued);
    lab.call::<Cancel>(json!({ "id": pushing }), None).await.unwrap();
    assert_eq!(lab.ended(pushing).await.state, OperationState::Cancelled);
    assert_eq!(lab.ended(delete).await.state, OperationState::Succeeded);
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn what_a_registry_refuses_fails_the_push_and_a_service_that_ends_is_replaced() {
    let mut lab = Lab::start().await;
    lab.pull(&registry("debian"), "debian").await.unwrap();
    let (closed, to) = (registry("closed"), registry("mirror"));
    lab.host.fail(&closed, ApiError::permission_denied("the registry refuses a push"));
    assert_eq!(push(&lab, &closed, None, true).await.unwrap_err().code, ErrorCode::PermissionDenied);
    for wrong in ["", "Debian", "127.0.0.1:5000/x@sha256:12", &format!("x@sha256:{}", "a".repeat(64))] {
        let request = PushRequest { image: "debian".into(), reference: wrong.into(), wait: true, timeout_ms: 1000 };
        let error = lab.bus.call::<Push>(&request).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{wrong}: {error}");
    }

    lab.host.block(&to);
    let pushing = push(&lab, &to, None, false).await.unwrap().id;
    wait_until("the push", BOUND, async || (lab.host.asked(&to) > 0).then_some(())).await;
    if let Some(server) = lab.server.take() {
        server.shutdown().await;
    }
    lab.host.release(&to);
    lab.server = Some(Server::start(lab.config.clone()).await.unwrap());
    assert_eq!(lab.ended(pushing).await.state, OperationState::Succeeded);
    lab.delete("debian").await.unwrap();
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn names_do_not_wait_for_a_push_and_a_delete_that_does_has_its_own_time() {
    let lab = Lab::start().await;
    lab.pull(&registry("debian"), "debian").await.unwrap();
    let to = registry("mirror");
    lab.host.block(&to);
    let pushing = push(&lab, &to, None, false).await.unwrap().id;
    wait_until("the push", BOUND, async || (lab.host.asked(&to) > 0).then_some(())).await;
    lab.call::<Tag>(json!({ "image": "debian", "name": "v2", "wait": true }), None).await.unwrap();
    lab.call::<Rename>(json!({ "from": "debian", "to": "v1", "wait": true }), None).await.unwrap();
    assert_eq!(lab.operation(pushing).await.state, OperationState::Running);
    let delete = lab.call::<contract::image::Delete>(json!({ "image": "v2" }), None).await.unwrap().id;
    let sql = lab.sql().await;
    let longer = "select count(*) from operations.operation d join operations.operation p \
         on p.kind = 'image.push' and d.kind = 'image.delete' and d.deadline_at > p.deadline_at + interval '4 minutes'";
    assert_eq!(count(&sql, longer).await, 1);
    lab.host.release(&to);
    assert_eq!(lab.ended(pushing).await.state, OperationState::Succeeded);
    let result = lab.ended(delete).await.result.unwrap();
    assert_eq!((&result["deleted"], &result["names"]), (&json!(false), &json!(["v1"])));
    lab.delete("v1").await.unwrap();
    lab.assert_nothing_left().await;
}

//! Stories of root filesystems that become images.

use contract::{
    ApiError, ErrorCode, SessionId,
    image::Register,
    operation::{Cancel, Operation, OperationState},
};
use image_service::Server;
use serde_json::{Value, json};
use testkit::wait_until;

use crate::lab::{BOUND, Lab, image_of};

const DISK: &str = "/srv/images/debian.ext4";
/// How hosts are told of it.
const SOURCE: &str = "file:/srv/images/debian.ext4";

async fn register(lab: &Lab, name: &str, more: Value) -> Result<Operation, ApiError> {
    let mut request = json!({ "source": { "path": DISK }, "name": name, "wait": true });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    lab.call::<Register>(request, None).await
}

#[tokio::test]
async fn a_file_becomes_an_image_and_the_same_file_is_the_same_image() {
    let lab = Lab::start().await;
    let done = register(&lab, "debian", json!({})).await.unwrap();
    let steps: Vec<_> = done.steps.iter().map(|step| (step.name.as_str(), step.state.as_str())).collect();
    assert_eq!(steps, [("place", "done"), ("stage", "done"), ("publish", "done")]);
    let image = image_of(&done);
    assert_eq!((image.name.as_str(), image.source.as_str()), ("debian", SOURCE));
    assert_eq!(image_of(&register(&lab, "debian", json!({})).await.unwrap()).id, image.id);
    let twin = image_of(&register(&lab, "twin", json!({ "host": "h1" })).await.unwrap());
    assert_eq!((twin.id, twin.names.len()), (image.id, 2));
    assert_eq!(lab.host.images(), [image.id]);
    assert_eq!(lab.host.staging(), []);

    // Another file of that name loses, unless it is to take it.
    lab.host.push(SOURCE, "another");
    let error = register(&lab, "debian", json!({})).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::AlreadyExists, "{error}");
    let other = image_of(&register(&lab, "debian", json!({ "replace": true })).await.unwrap());
    assert_ne!(other.id, image.id);
    lab.delete("twin").await.unwrap();
    lab.delete("debian").await.unwrap();
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn what_no_host_could_take_is_refused_and_makes_no_operation() {
    let lab = Lab::start().await;
    for wrong in [
        json!({ "source": { "path": "../etc/passwd" } }),
        json!({ "source": { "path": "/srv/../etc/passwd" } }),
        json!({ "source": { "object": "images" } }),
        json!({ "source": { "upload": { "session": SessionId::new(), "label": "a\nb" } } }),
        json!({ "config": { "env": ["A"] } }),
        json!({ "config": { "working_dir": "srv" } }),
        json!({ "timeout_ms": 0 }),
    ] {
        let error = register(&lab, "debian", wrong.clone()).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{wrong}");
    }
    assert_eq!(lab.host.asked(SOURCE), 0);
    let error = register(&lab, "debian", json!({ "host": "nowhere" })).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound, "{error}");
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_host_that_refuses_a_cancel_and_a_service_that_ends_leave_nothing_or_an_image() {
    let mut lab = Lab::start().await;
    lab.host.fail(SOURCE, ApiError::permission_denied("the file is not below a directory of images"));
    let error = register(&lab, "debian", json!({})).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::PermissionDenied);
    lab.assert_nothing_left().await;

    let session = SessionId::new();
    let upload = json!({ "source": { "upload": { "session": session, "label": "web.ext4" } }, "wait": false });
    lab.host.block("upload:web.ext4");
    let id = register(&lab, "web", upload.clone()).await.unwrap().id;
    wait_until("the upload", BOUND, async || (lab.host.asked("upload:web.ext4") > 0).then_some(())).await;
    lab.call::<Cancel>(json!({ "id": id }), None).await.unwrap();
    assert_eq!(lab.ended(id).await.state, OperationState::Cancelled);
    lab.assert_nothing_left().await;

    let id = register(&lab, "web", upload).await.unwrap().id;
    wait_until("the upload", BOUND, async || (lab.host.staging().len() == 1).then_some(())).await;
    // Another replica goes on with the same staging: the upload is not begun anew.
    if let Some(server) = lab.server.take() {
        server.shutdown().await;
    }
    lab.server = Some(Server::start(lab.config.clone()).await.unwrap());
    lab.host.release("upload:web.ext4");
    let image = image_of(&lab.ended(id).await);
    assert_eq!((image.name.as_str(), image.source.as_str()), ("web", "upload:web.ext4"));
    assert_eq!(lab.host.staging(), []);
}

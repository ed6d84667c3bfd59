//! Stories of images in files: sent out, and taken in.

use contract::{
    ApiError, ErrorCode, SessionId,
    image::{Delete, Export, Import},
    operation::{Cancel, Operation, OperationState},
};
use serde_json::{Value, json};
use testkit::wait_until;

use crate::lab::{BOUND, Lab, image_of, registry};

async fn export(lab: &Lab, image: &str, session: SessionId, wait: bool) -> Result<Operation, ApiError> {
    lab.call::<Export>(json!({ "image": image, "session": session, "wait": wait }), None).await
}

async fn import(lab: &Lab, more: Value) -> Result<Operation, ApiError> {
    let mut request = json!({ "source": { "path": "/srv/web.oci.tar" }, "name": "web", "wait": true });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    lab.call::<Import>(request, None).await
}

#[tokio::test]
async fn an_export_tells_the_digests_and_a_delete_waits_for_it() {
    let lab = Lab::start().await;
    let image = image_of(&lab.pull(&registry("debian"), "debian").await.unwrap());
    let done = export(&lab, "debian", SessionId::new(), true).await.unwrap();
    let result = done.result.unwrap();
    assert_eq!((&result["image_id"], &result["host"]), (&json!(image.id), &json!("h1")));
    assert_eq!(result["exported"]["sent_bytes"], 8);
    assert_eq!(export(&lab, "none", SessionId::new(), true).await.unwrap_err().code, ErrorCode::NotFound);

    let session = SessionId::new();
    lab.host.block(&session.to_string());
    let exporting = export(&lab, &image.digest, session, false).await.unwrap().id;
    wait_until("the export", BOUND, async || (lab.host.asked(&session.to_string()) > 0).then_some(())).await;
    let delete = lab.call::<Delete>(json!({ "image": "debian" }), None).await.unwrap().id;
    assert_eq!(lab.operation(delete).await.state, OperationState::Queued);
    lab.call::<Cancel>(json!({ "id": exporting }), None).await.unwrap();
    assert_eq!(lab.ended(exporting).await.state, OperationState::Cancelled);
    assert_eq!(lab.ended(delete).await.state, OperationState::Succeeded);
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn an_archive_becomes_an_image_or_leaves_nothing() {
    let lab = Lab::start().await;
    let image = image_of(&import(&lab, json!({})).await.unwrap());
    assert_eq!((image.name.as_str(), image.source.as_str()), ("web", "file:/srv/web.oci.tar"));
    assert_eq!(image_of(&import(&lab, json!({ "name": "twin" })).await.unwrap()).id, image.id);
    lab.host.push("file:/srv/web.oci.tar", "another");
    assert_eq!(import(&lab, json!({})).await.unwrap_err().code, ErrorCode::AlreadyExists);
    let other = image_of(&import(&lab, json!({ "replace": true })).await.unwrap());
    assert_ne!(other.id, image.id);
    for wrong in [json!({ "source": { "path": "web.tar" } }), json!({ "source": { "object": "x" } })] {
        assert_eq!(import(&lab, wrong.clone()).await.unwrap_err().code, ErrorCode::InvalidArgument, "{wrong}");
    }
    lab.host.fail("file:/srv/web.oci.tar", ApiError::failed_precondition("digest mismatch"));
    let error = import(&lab, json!({ "name": "third" })).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::FailedPrecondition);
    assert_eq!(lab.image("third").await.unwrap_err().code, ErrorCode::NotFound);
    for name in ["web", "twin"] {
        lab.delete(name).await.unwrap();
    }
    lab.assert_nothing_left().await;
}

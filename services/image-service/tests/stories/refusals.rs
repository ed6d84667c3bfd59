//! What is refused, with which code, and that nothing stays of it.

use contract::{
    ApiError, ErrorCode,
    host::HostState,
    image::{List, Pull},
    operation::OperationState,
};
use serde_json::json;

use crate::lab::{Lab, count, registry};

#[tokio::test]
async fn a_wrong_request_makes_no_operation() {
    let lab = Lab::start().await;
    let good = json!({ "registry": registry("debian") });
    for source in [
        json!({ "registry": "Not A Reference" }),
        json!({ "registry": "" }),
        json!({ "layout": { "path": "srv" } }),
        json!({ "layout": { "path": "/srv/../etc" } }),
        json!({ "layout": { "path": "/srv", "reference": "" } }),
    ] {
        let error = lab.call::<Pull>(json!({ "source": source, "name": "x" }), None).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{error}");
        assert!(error.hint.is_some(), "{error}");
    }
    let request = json!({ "source": good, "name": "x", "wait": true, "timeout_ms": 0 });
    assert_eq!(lab.call::<Pull>(request, None).await.unwrap_err().code, ErrorCode::InvalidArgument);
    assert_eq!(lab.call::<List>(json!({ "limit": 0 }), None).await.unwrap_err().code, ErrorCode::InvalidArgument);
    for image in ["nope", "../etc", "0190d5a4-0000-7000-8000-000000000000", &"x".repeat(10_000)] {
        assert_eq!(lab.image(image).await.unwrap_err().code, ErrorCode::NotFound);
        let error = lab.delete(image).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
        assert!(error.message.len() < 200);
    }
    assert_eq!(count(&lab.sql().await, "select count(*) from operations.operation").await, 0);
}

#[tokio::test]
async fn a_taken_name_is_refused_before_anything_is_downloaded() {
    let lab = Lab::start().await;
    lab.pull(&registry("debian"), "debian").await.unwrap();
    let request = json!({ "source": { "registry": registry("other") }, "name": "debian", "wait": true });
    let error = lab.call::<Pull>(request, None).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::AlreadyExists);
    assert!(error.hint.unwrap().contains("warren image rm debian"));
    assert_eq!(lab.host.asked(&registry("other")), 0);
    assert_eq!(lab.host.images().len(), 1);
}

#[tokio::test]
async fn what_the_host_found_wrong_is_carried_through() {
    let lab = Lab::start().await;
    let failures = [
        ("digest", ApiError::failed_precondition("layer 2 has the wrong digest")),
        ("missing", ApiError::not_found("the registry has no such manifest").hint("check the tag")),
        ("full", ApiError::resource_exhausted("no space left in staging")),
        ("gone", ApiError::unavailable("the registry does not answer")),
    ];
    for (name, failure) in failures {
        lab.host.fail(&registry(name), failure.clone());
        let error = lab.pull(&registry(name), name).await.unwrap_err();
        assert_eq!((error.code, &error.message, &error.hint), (failure.code, &failure.message, &failure.hint));
        let id = serde_json::from_value(error.details.unwrap()["operation_id"].clone()).unwrap();
        assert_eq!(lab.operation(id).await.state, OperationState::Failed);
        assert_eq!(lab.host.asked(&registry(name)), 1, "it is not tried again");
    }
    lab.assert_nothing_left().await;
}

#[tokio::test]
async fn a_pull_without_a_host_fails_soon() {
    let lab = Lab::start().await;
    let on = |host: &str| json!({ "source": { "registry": registry("debian") }, "name": "debian", "host": host, "wait": true });
    assert_eq!(lab.call::<Pull>(on("h9"), None).await.unwrap_err().code, ErrorCode::NotFound);
    lab.registry.put("h1", HostState::Down, 1024);
    let source = registry("debian");
    let (named, any) = tokio::join!(lab.call::<Pull>(on("h1"), None), lab.pull(&source, "debian"));
    for error in [named.unwrap_err(), any.unwrap_err()] {
        assert_eq!(error.code, ErrorCode::Unavailable, "{error}");
        assert!(error.hint.is_some(), "{error}");
    }
    lab.registry.put("h1", HostState::Up, 0);
    let error = lab.pull(&registry("debian"), "debian").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::ResourceExhausted);
    lab.assert_nothing_left().await;
}

//! What is refused before anybody is asked.

use contract::{
    ErrorCode, SessionId,
    worktree::{Export, List, Prepare},
};
use serde_json::{Value, json};

use crate::{client::*, common::Lab};

#[tokio::test]
async fn what_cannot_be_is_refused_before_anybody_is_asked() {
    let lab = Lab::start().await;
    let prepare = |more: Value| {
        let mut request = json!({ "vm": "web", "source": { "upload": { "session": SessionId::new() } } });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    for (more, word) in [
        (json!({ "path": "/etc/passwd" }), "directory of the system"),
        (json!({ "path": "/srv/../../etc" }), ".."),
        (json!({ "path": "relative" }), "absolute"),
        (json!({ "owner": "-x" }), "owner"),
        (json!({ "timeout_ms": 0 }), "timeout_ms"),
        (json!({ "timeout_ms": 600_001 }), "timeout_ms"),
        (json!({ "source": { "git": { "url": "ext::sh -c id" } } }), "git URL"),
        (json!({ "source": { "git": { "url": "https://ann:pw@h/x" } } }), "credentials"),
        (json!({ "source": { "host": { "path": "/srv/.." } } }), "no directory of a host"),
        (json!({ "source": { "object": "x" } }), "no object"),
    ] {
        refused::<Prepare>(&lab, prepare(more), ErrorCode::InvalidArgument, word).await;
    }
    refused::<Prepare>(&lab, prepare(json!({ "vm": "nope" })), ErrorCode::NotFound, "no VM").await;
    let export = json!({ "vm": "web", "session": SessionId::new() });
    refused::<Export>(&lab, export, ErrorCode::NotFound, "no workspace").await;
    let none = json!({ "vm": "web", "session": SessionId::new(), "max_entries": 0 });
    refused::<Export>(&lab, none, ErrorCode::InvalidArgument, "max_entries").await;
    refused::<List>(&lab, json!({ "limit": 1001 }), ErrorCode::InvalidArgument, "limit").await;
    assert_eq!(lab.agent.transfers.orders(), 0);

    // A host's directory is the host's to allow.
    let id = lab.call::<Prepare>(prepare(json!({ "source": { "host": { "path": "/srv/x" } } }))).await.unwrap().id;
    assert_eq!(failed(&lab, id).await.code, ErrorCode::PermissionDenied);
}

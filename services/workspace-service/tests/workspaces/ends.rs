//! Ends of transfers that nobody wanted: cancels, clients and hosts that fall silent, and trees that stand all the same.

use std::time::Duration;

use bytes::Bytes;
use contract::{
    ApiError, ErrorCode,
    frame::Frame,
    operation::{Cancel, OperationState},
};
use serde_json::json;
use testkit::wait_until;
use workspace_service::Server;

use crate::{
    client::*,
    common::{BOUND, Lab, fake_transfers::say},
};

#[tokio::test]
async fn a_cancel_and_a_client_that_vanishes_end_a_transfer() {
    let lab = Lab::start().await;
    let held = Held::begun(&lab, "web").await;
    let mut stream = held.stream;
    lab.call::<Cancel>(json!({ "id": held.id })).await.unwrap();
    assert_eq!(lab.ended(held.id).await.state, OperationState::Cancelled);
    assert!(lab.agent.transfers.aborted().iter().all(|aborted| *aborted == held.id));
    assert!(listed(&lab).await.is_empty());
    // What comes too late is nobody's.
    drop(say(&mut stream, &[Frame::Stdin(Bytes::new())]).await);

    let Held { id, stream } = Held::begun(&lab, "web").await;
    drop(stream);
    let error = failed(&lab, id).await;
    assert!(error.message.contains("the client is gone"), "{error:?}");
    prepare(&lab, "web", json!({}), b"tree").await;
}

#[tokio::test]
async fn a_tree_that_stood_before_the_cancel_came_is_prepared() {
    let lab = Lab::start().await;
    lab.agent.transfers.be_late();
    let held = Held::begun(&lab, "web").await;
    lab.call::<Cancel>(json!({ "id": held.id })).await.unwrap();
    succeeded(lab.ended(held.id).await);
    let listed = listed(&lab).await;
    assert_eq!((listed[0].generation, listed[0].entries), (Some(held.id), 7), "{listed:?}");
}

#[tokio::test]
async fn a_tree_that_stood_before_its_host_was_given_up_is_a_workspace() {
    let mut lab = Lab::engines().await;
    let mut config = lab.config();
    config.patience = Duration::from_secs(1);
    lab.server = Some(Server::start(config).await.unwrap());
    lab.agent.transfers.be_late();
    let (web, held) = (lab.id("web"), Held::begun(&lab, "web").await);
    lab.agent.transfers.refuse(web, Some(ApiError::unavailable("the agent is away")));
    wait_until("the undo", BOUND, async || {
        let operation = lab.call::<contract::operation::Get>(json!({ "id": held.id })).await.ok()?;
        (operation.phase == "undo").then_some(())
    })
    .await;
    lab.agent.transfers.refuse(web, None);
    failed(&lab, held.id).await;
    assert_eq!(listed(&lab).await[0].generation, Some(held.id));
}

#[tokio::test]
async fn a_host_that_is_silent_for_too_long_ends_a_transfer_and_one_that_comes_back_does_not() {
    let mut lab = Lab::engines().await;
    let mut config = lab.config();
    config.patience = Duration::from_secs(2);
    lab.server = Some(Server::start(config).await.unwrap());
    let web = lab.id("web");
    let away = || Some(ApiError::unavailable("the agent is away"));
    let held = Held::begun(&lab, "web").await;
    lab.agent.transfers.refuse(web, away());
    wait_until("the undo", BOUND, async || {
        let operation = lab.call::<contract::operation::Get>(json!({ "id": held.id })).await.ok()?;
        (operation.phase == "undo").then_some(())
    })
    .await;
    // What the host could not be told is tried again until it is back.
    lab.agent.transfers.refuse(web, None);
    let error = failed(&lab, held.id).await;
    assert_eq!(error.code, ErrorCode::DeadlineExceeded);
    assert!(error.message.contains("host of VM web was silent for 2 s"), "{}", error.message);
    assert_eq!(lab.agent.transfers.aborted(), [held.id]);
    let held = Held::begun(&lab, "web").await;
    lab.agent.transfers.refuse(web, away());
    let (id, before) = (held.id, lab.agent.transfers.refused());
    wait_until("a question", BOUND, async || (lab.agent.transfers.refused() > before).then_some(())).await;
    lab.agent.transfers.refuse(web, None);
    held.send(b"tree").await;
    succeeded(lab.ended(id).await);
}

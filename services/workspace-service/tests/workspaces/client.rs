//! A client of workspaces on NATS: it hands trees in, and reads what comes out.

use bus::ByteStream;
use bytes::{Bytes, BytesMut};
use contract::{
    ApiError, ErrorCode, OperationId, SessionId, Verb,
    frame::{Exit, Frame},
    operation::{Operation, OperationState},
    worktree::{Export, List, Prepare, Workspace},
};
use serde_json::{Value, json};
use testkit::wait_until;
use tokio::io::AsyncReadExt;

use crate::common::{BOUND, Lab, fake_transfers::say};

/// A prepare whose client has not sent anything yet.
pub struct Held {
    pub id: OperationId,
    pub stream: ByteStream,
}

impl Held {
    /// Asks for it.
    pub async fn ask(lab: &Lab, vm: &str, more: Value) -> Result<Self, ApiError> {
        let (session, stream) = listen(lab).await;
        let mut request = json!({ "vm": vm, "source": { "upload": { "session": session } } });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let id = lab.call::<Prepare>(request).await?.id;
        Ok(Self { id, stream })
    }

    /// Asks, and waits until the host has begun.
    pub async fn begun(lab: &Lab, vm: &str) -> Self {
        let held = Self::ask(lab, vm, json!({})).await.unwrap();
        wait_until("the transfer", BOUND, async || lab.agent.transfers.begun().contains(&held.id).then_some(())).await;
        held
    }

    /// Sends the tree.
    pub async fn send(mut self, tree: &'static [u8]) {
        let frames = [Frame::Stdin(Bytes::from_static(tree)), Frame::Stdin(Bytes::new())];
        say(&mut self.stream, &frames).await.unwrap();
        assert_eq!(read(&mut self.stream).await, b"");
    }
}

pub async fn listen(lab: &Lab) -> (SessionId, ByteStream) {
    let session = SessionId::new();
    (session, ByteStream::open_within(&lab.bus, session, BOUND).await.unwrap())
}

/// What a guest sends until it says that it has ended well.
pub async fn read(stream: &mut ByteStream) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), BytesMut::new());
    loop {
        match Frame::decode(&mut buffer).unwrap() {
            Some(Frame::Stdout(data)) => all.extend_from_slice(&data),
            Some(Frame::Exit(Exit { code: 0, .. })) => return all,
            Some(other) => panic!("{other:?}"),
            None => assert_ne!(stream.read_buf(&mut buffer).await.unwrap(), 0),
        }
    }
}

pub async fn prepare(lab: &Lab, vm: &str, more: Value, tree: &'static [u8]) -> Operation {
    let held = Held::ask(lab, vm, more).await.unwrap();
    let id = held.id;
    held.send(tree).await;
    succeeded(lab.ended(id).await)
}

pub fn succeeded(operation: Operation) -> Operation {
    assert_eq!(operation.state, OperationState::Succeeded, "{operation:?}");
    operation
}

pub async fn export(lab: &Lab, vm: &str, more: Value) -> (Operation, Vec<u8>) {
    let (session, mut stream) = listen(lab).await;
    let mut request = json!({ "vm": vm, "session": session });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let id = lab.call::<Export>(request).await.unwrap().id;
    let changes = read(&mut stream).await;
    (succeeded(lab.ended(id).await), changes)
}

pub async fn failed(lab: &Lab, id: OperationId) -> ApiError {
    let ended = lab.ended(id).await;
    assert_eq!(ended.state, OperationState::Failed, "{ended:?}");
    ended.error.unwrap()
}

pub async fn listed(lab: &Lab) -> Vec<Workspace> {
    lab.call::<List>(json!({})).await.unwrap().workspaces
}

pub async fn refused<V: Verb<Reply: std::fmt::Debug>>(lab: &Lab, request: Value, code: ErrorCode, word: &str) {
    let error = lab.call::<V>(request.clone()).await.unwrap_err();
    assert_eq!(error.code, code, "{request}: {error:?}");
    assert!(error.message.contains(word), "{request}: {}", error.message);
}

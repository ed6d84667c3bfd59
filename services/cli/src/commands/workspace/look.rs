//! A **look** at a workspace: whether it has changes, without an operation.

use bytes::BytesMut;
use contract::{
    ApiError,
    frame::Frame,
    workspace::{LookRequest, SessionKind},
    worktree::Looked,
};
use tokio::io::AsyncReadExt;

use crate::client::Client;

/// The most bytes of an answer.
const ANSWER_MAX: usize = 4096;

/// Looks. None where that is not known: by a guest or service of an older version, or because something is in the way, of which an
/// export says more.
pub(super) async fn look(client: &Client, vm: &str, path: &str) -> Option<Looked> {
    match ask(client, vm, path).await {
        Ok(looked) => Some(looked),
        Err(error) => {
            tracing::debug!(%error, "the workspace was not looked at");
            None
        }
    }
}

async fn ask(client: &Client, vm: &str, path: &str) -> Result<Looked, ApiError> {
    let mut stream = client.open(vm, SessionKind::Look(LookRequest { path: path.to_owned() })).await?;
    let malformed = |what: String| ApiError::internal(format!("the guest's answer cannot be read: {what}"));
    let (mut buffer, mut answer) = (BytesMut::new(), Vec::new());
    loop {
        match Frame::decode(&mut buffer).map_err(|error| malformed(error.to_string()))? {
            Some(Frame::Stdout(bytes)) if answer.len() + bytes.len() <= ANSWER_MAX => answer.extend_from_slice(&bytes),
            Some(Frame::Exit(exit)) if exit.code == 0 => break,
            Some(other) => return Err(malformed(format!("{other:?} is no part of it"))),
            None => match stream.read_buf(&mut buffer).await {
                Ok(0) => return Err(malformed("it ended early".to_owned())),
                Ok(_) => {}
                Err(error) => return Err(malformed(error.to_string())),
            },
        }
    }
    serde_json::from_slice(&answer).map_err(|error| malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_more_than_is_known_today_is_understood() {
        assert_eq!(
            serde_json::from_str::<Looked>(r#"{"changed":true,"entries":3}"#).unwrap(),
            Looked { changed: true }
        );
    }
}

//! **Workspaces** of this VM: imports, exports and removals, one at a time, each known by its operation.
//!
//! What a transfer does is [`tree`]'s; it works in a thread, a bounded queue apart from the stream that carries it. Whoever asked for it may go and
//! ask again how it went. What is known here of transfers goes with this process: a new one finishes or removes what they left on
//! the disk, and knows of those only that were placed.

mod carry;
mod transfers;

use bytes::BytesMut;
use contract::{
    ApiError,
    frame::{Exit, Frame},
    guest::Reply,
    workspace::LookRequest,
    worktree::{ExportOrder, ImportOrder, RemoveOrder},
};
use tokio::io::AsyncWriteExt;
use tree::GuestError;

pub use transfers::Workspaces;

use crate::{agent::MuxStream, process::user};

/// Takes a tree of files.
pub async fn import(mut stream: MuxStream, order: ImportOrder, workspaces: &Workspaces) {
    let owner = match owner(order.owner.as_deref()) {
        Ok(owner) => owner,
        Err(error) => return refuse(&mut stream, error).await,
    };
    let transfer = match workspaces.begin(order.operation, order.epoch).await {
        Ok(transfer) => transfer,
        Err(error) => return refuse(&mut stream, error).await,
    };
    let state = workspaces.state().clone();
    carry::serve(stream, transfer, move |reader, writer, watch| {
        tree::receive(&order, &state, Some(owner), reader, writer, watch)
    })
    .await;
}

/// Gives the changes of a workspace.
pub async fn export(mut stream: MuxStream, order: ExportOrder, workspaces: &Workspaces) {
    let transfer = match workspaces.begin(order.operation, order.epoch).await {
        Ok(transfer) => transfer,
        Err(error) => return refuse(&mut stream, error).await,
    };
    let state = workspaces.state().clone();
    carry::serve(stream, transfer, move |reader, writer, watch| tree::export(&order, &state, reader, writer, watch))
        .await;
}

/// Tells whether a workspace has changes. It waits for nobody: what a transfer is changing at this moment may count or not.
pub async fn look(mut stream: MuxStream, look: LookRequest, workspaces: &Workspaces) {
    let state = workspaces.state().clone();
    let looked = tokio::task::spawn_blocking(move || tree::look(&look.path, &state)).await;
    let looked = match looked {
        Ok(Ok(looked)) => looked,
        Ok(Err(error)) => return refuse(&mut stream, error.to_api()).await,
        Err(error) => {
            return refuse(&mut stream, ApiError::internal(format!("looking at the workspace failed: {error}"))).await;
        }
    };
    let mut bytes = BytesMut::new();
    let text = serde_json::to_vec(&looked).unwrap_or_default();
    Frame::Stdout(text.into()).encode(&mut bytes);
    Frame::Exit(Exit { code: 0, message: None }).encode(&mut bytes);
    // A host that has gone needs no answer.
    if stream.write_reply(&Reply::Ok).await.is_ok() && stream.write_all(&bytes).await.is_ok() {
        stream.shutdown().await.unwrap_or_default();
    }
}

/// Forgets a workspace; one that is none is forgotten already.
pub async fn forget(order: RemoveOrder, workspaces: &Workspaces) -> Reply {
    let _held = match workspaces.hold(order.epoch).await {
        Ok(held) => held,
        Err(error) => return Reply::Error(error),
    };
    let state = workspaces.state().clone();
    match tokio::task::spawn_blocking(move || tree::forget(&order, &state)).await {
        Ok(Ok(()) | Err(GuestError::NoWorkspace(_))) => Reply::Ok,
        Ok(Err(error)) => Reply::Error(error.to_api()),
        Err(error) => Reply::Error(ApiError::internal(format!("removing the workspace failed: {error}"))),
    }
}

async fn refuse(stream: &mut MuxStream, error: ApiError) {
    if stream.write_reply(&Reply::Error(error)).await.is_ok() {
        stream.shutdown().await.unwrap_or_default();
    }
}

/// A user's and group's numbers; nobody named is root.
fn owner(name: Option<&str>) -> Result<(u32, u32), ApiError> {
    let account = user::find(name.unwrap_or_default()).map_err(|error| {
        ApiError::invalid_argument(error.to_string()).hint("name a user of the image, or give numbers: uid:gid")
    })?;
    Ok((account.uid, account.gid))
}

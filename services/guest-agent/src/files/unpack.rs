//! Unpacking: an archive becomes files of the guest.

use archive::{Owner, Place, PlaceError, pipe};
use bytes::{Bytes, BytesMut};
use contract::{ApiError, frame::Frame, guest::Reply, workspace::UnpackFiles};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use super::finish;
use crate::{agent::MuxStream, process::user};

/// Takes the archive.
pub async fn serve(mut stream: MuxStream, request: UnpackFiles) {
    let place = match place(&request) {
        Ok(place) => place,
        Err(error) => {
            stream.write_reply(&Reply::Error(error)).await.unwrap_or_default();
            return stream.shutdown().await.unwrap_or_default();
        }
    };
    if stream.write_reply(&Reply::Ok).await.is_err() {
        return;
    }
    let (sender, reader) = pipe::inward();
    let mut unpacking = tokio::task::spawn_blocking(move || place.unpack(reader, || Ok(())));
    let outcome = tokio::select! {
        outcome = &mut unpacking => outcome,
        // Cut off, the thread finds the end of its pipe and fails.
        () = receive(stream.clone(), sender) => unpacking.await,
    };
    let outcome = match outcome {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(error) => Err(format!("unpacking failed: {error}")),
    };
    finish(&mut stream, outcome).await;
}

/// Passes the archive on until its end, or until the host sends something else or goes.
async fn receive(mut stream: MuxStream, pieces: mpsc::Sender<Bytes>) {
    let mut buffer = BytesMut::with_capacity(64 * 1024);
    loop {
        match Frame::decode(&mut buffer) {
            Ok(Some(Frame::Stdin(bytes))) => {
                let ended = bytes.is_empty();
                if pieces.send(bytes).await.is_err() || ended {
                    return;
                }
            }
            Ok(Some(_)) | Err(_) => return,
            Ok(None) => match stream.read_buf(&mut buffer).await {
                Ok(count) if count > 0 => {}
                _ => return,
            },
        }
    }
}

fn place(request: &UnpackFiles) -> Result<Place, ApiError> {
    let owner = match &request.owner {
        None => Owner::Archived,
        Some(owner) => {
            let account = user::find(owner).map_err(|error| ApiError::invalid_argument(error.to_string()))?;
            Owner::These(account.uid, account.gid)
        }
    };
    Place::find(&request.path, request.contents, owner).map_err(|error| {
        let message = format!("in the VM, {}", crate::boot::chain(&error));
        match error {
            PlaceError::NotAbsolute(_) | PlaceError::NoName(_) => ApiError::invalid_argument(message),
            PlaceError::NoDirectory(_) => ApiError::not_found(message),
            PlaceError::Make { .. } => ApiError::failed_precondition(message),
        }
    })
}

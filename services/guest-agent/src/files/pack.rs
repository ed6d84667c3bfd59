//! Packing: a file or a directory of the guest becomes an archive whose entries begin with its last name.

use std::{fs, io, path::Path};

use archive::pipe;
use bytes::Bytes;
use contract::{ApiError, frame::Frame, guest::Reply, workspace::PackFiles};
use tokio::{io::AsyncWriteExt, sync::mpsc};

use super::{finish, send};
use crate::agent::MuxStream;

/// Sends the archive.
pub async fn serve(mut stream: MuxStream, request: PackFiles) {
    if let Err(error) = check(&request) {
        stream.write_reply(&Reply::Error(error)).await.unwrap_or_default();
        return stream.shutdown().await.unwrap_or_default();
    }
    if stream.write_reply(&Reply::Ok).await.is_err() {
        return;
    }
    let (writer, mut pieces) = pipe::outward();
    let packing = tokio::task::spawn_blocking(move || {
        archive::pack(Path::new(&request.path), request.contents, request.follow, writer)
    });
    if !forward(&mut stream, &mut pieces).await {
        // Dropping the receiver ends the thread at its next piece.
        return;
    }
    let outcome = match packing.await {
        Ok(Ok(warnings)) => {
            for warning in warnings {
                if send(&mut stream, &Frame::Stderr(Bytes::from(format!("{warning}\n")))).await.is_err() {
                    return;
                }
            }
            Ok(())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(format!("packing failed: {error}")),
    };
    finish(&mut stream, outcome).await;
}

/// Sends what the thread makes; whether the host is still there.
async fn forward(stream: &mut MuxStream, pieces: &mut mpsc::Receiver<Bytes>) -> bool {
    let watched = stream.clone();
    loop {
        tokio::select! {
            piece = pieces.recv() => match piece {
                Some(piece) => {
                    if send(stream, &Frame::Stdout(piece)).await.is_err() {
                        return false;
                    }
                }
                None => return true,
            },
            () = watched.closed() => return false,
        }
    }
}

fn check(request: &PackFiles) -> Result<(), ApiError> {
    let path = Path::new(&request.path);
    if !path.is_absolute() {
        return Err(ApiError::invalid_argument(format!("{:?} is not an absolute path", request.path)));
    }
    let found = if request.follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
    match found {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(ApiError::not_found(format!("there is no {} in the VM", request.path)))
        }
        Err(error) => Err(ApiError::failed_precondition(format!("{} cannot be read: {error}", request.path))),
    }
}

#[cfg(test)]
mod tests {
    use contract::ErrorCode;

    use super::*;

    #[test]
    fn what_cannot_be_packed_is_refused_before_anything_is_sent() {
        let check = |path: &str| check(&PackFiles { path: path.into(), follow: false, contents: false });
        assert_eq!(check("top").unwrap_err().code, ErrorCode::InvalidArgument);
        assert_eq!(check("/no/such").unwrap_err().code, ErrorCode::NotFound);
        check("/").unwrap();
    }
}

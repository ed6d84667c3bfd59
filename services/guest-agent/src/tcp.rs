//! TCP connections into the guest, or to what the guest reaches, as bytes on a stream of the channel: what `warren
//! port-forward` carries.

use std::{io, net::SocketAddr, time::Duration};

use contract::{ApiError, guest::Reply, workspace::TcpTarget};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{agent::MuxStream, ssh::names};

/// How long a connection may take to be made.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// Connects, answers, and carries bytes both ways with half-closes until both have ended or the host has gone.
pub async fn serve(mut stream: MuxStream, target: &TcpTarget) {
    let mut connection = match connect(target).await {
        Ok(connection) => connection,
        Err(error) => {
            stream.write_reply(&Reply::Error(error)).await.unwrap_or_default();
            return stream.shutdown().await.unwrap_or_default();
        }
    };
    if stream.write_reply(&Reply::Ok).await.is_err() {
        return;
    }
    let watched = stream.clone();
    tokio::select! {
        ended = tokio::io::copy_bidirectional(&mut connection, &mut stream) => tracing::debug!("a connection to {target} ended: {ended:?}"),
        () = watched.closed() => {}
    }
}

async fn connect(target: &TcpTarget) -> Result<TcpStream, ApiError> {
    let connecting = async {
        let addresses: Vec<_> = names::resolve(&target.host)
            .await?
            .into_iter()
            .map(|address| SocketAddr::new(address, target.port))
            .collect();
        let connection = TcpStream::connect(&addresses[..]).await?;
        connection.set_nodelay(true)?;
        Ok::<_, io::Error>(connection)
    };
    match tokio::time::timeout(CONNECT_WAIT, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(ApiError::unavailable(format!("{target} cannot be connected to from the VM: {error}"))
            .hint("does the program listen there? `warren exec VM -- ss -ltn` shows")),
        Err(_) => Err(ApiError::unavailable(format!("{target} does not answer the VM"))),
    }
}

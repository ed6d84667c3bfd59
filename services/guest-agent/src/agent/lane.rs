//! **Lanes**: connections of the host over the VM's own network, each asked for over the channel and good for once.
//!
//! The port is open for seconds, takes no address but the host's, and the first connection that shows the token closes it.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use contract::{
    ApiError,
    direct::Token,
    guest::{LANE_LIFE, LANE_TOKEN, Reply},
};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::OwnedSemaphorePermit,
    task::JoinSet,
};

use super::{Shared, mux};

/// The most lanes at once, those that are only offered among them.
pub const LANES_MAX: usize = 32;
/// The most connections that may be about to show their token.
const GUESTS_MAX: usize = 8;
/// How long showing it may take.
const SHOW: Duration = Duration::from_secs(3);
/// How long a lane may be silent before the host is asked whether it is there, how often, and how many times: seconds.
const KEEPALIVE: (u32, u32, u32) = (15, 5, 4);

/// Listens for a lane; where.
pub async fn offer(token: &Token, shared: &Arc<Shared>) -> Reply {
    match listen(token, shared).await {
        Ok(port) => Reply::Lane(port),
        Err(error) => Reply::Error(error),
    }
}

async fn listen(token: &Token, shared: &Arc<Shared>) -> Result<u16, ApiError> {
    let secret = hex::decode(&token.0).ok().and_then(|bytes| <[u8; LANE_TOKEN]>::try_from(bytes).ok());
    let secret = secret.ok_or_else(|| ApiError::invalid_argument("a lane's token has 32 bytes in hexadecimal"))?;
    let network = shared.settings.network.as_ref();
    let network = network.ok_or_else(|| ApiError::failed_precondition("this VM has no network for a lane"))?;
    let permit = Arc::clone(&shared.lanes).try_acquire_owned();
    let permit =
        permit.map_err(|_| ApiError::resource_exhausted(format!("the guest has {LANES_MAX} lanes already")))?;
    let bind = async {
        let listener = TcpListener::bind((network.address.addr(), 0)).await?;
        let port = listener.local_addr()?.port();
        Ok::<_, io::Error>((listener, port))
    };
    let failed = |error| ApiError::unavailable(format!("the guest cannot listen on its address: {error}"));
    let (listener, port) = bind.await.map_err(failed)?;
    tokio::spawn(serve(listener, network.gateway, secret, permit, Arc::clone(shared)));
    Ok(port)
}

/// Waits for the host and serves it.
async fn serve(
    listener: TcpListener,
    host: Ipv4Addr,
    secret: [u8; LANE_TOKEN],
    permit: OwnedSemaphorePermit,
    shared: Arc<Shared>,
) {
    let Ok(stream) = tokio::time::timeout(LANE_LIFE, accept(listener, host, secret)).await else { return };
    if let Err(error) = keep_alive(&stream) {
        tracing::debug!("a lane whose host goes would stay: {error}");
    }
    tracing::debug!("a lane of the host");
    let ended = mux::carry(stream, mux::lane_config(), &shared).await;
    tracing::debug!("a lane ended: {ended:?}");
    drop(permit);
}

/// The first connection that shows the token. What others there were, and the port, are closed with it.
async fn accept(listener: TcpListener, host: Ipv4Addr, secret: [u8; LANE_TOKEN]) -> TcpStream {
    let mut shown = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if shown.len() < GUESTS_MAX => match accepted {
                Ok((stream, SocketAddr::V4(from))) if *from.ip() == host => {
                    shown.spawn(tokio::time::timeout(SHOW, show(stream, secret)));
                }
                Ok(_) => {}
                // No descriptors are left, or the connection went meanwhile.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(shown) = shown.join_next() => if let Ok(Ok(Some(stream))) = shown {
                return stream;
            },
        }
    }
}

async fn show(mut stream: TcpStream, secret: [u8; LANE_TOKEN]) -> Option<TcpStream> {
    let mut token = [0; LANE_TOKEN];
    stream.read_exact(&mut token).await.ok()?;
    // Each byte is looked at whatever the others are.
    let differing = token.iter().zip(&secret).fold(0, |sum, (one, other)| sum | (one ^ other));
    (differing == 0).then_some(stream)
}

/// A host that vanished is noticed: what goes on would hold its workspaces for ever.
fn keep_alive(stream: &TcpStream) -> nix::Result<()> {
    let (idle, interval, count) = KEEPALIVE;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(stream, sockopt::TcpKeepCount, &count)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &30_000)?;
    setsockopt(stream, sockopt::TcpNoDelay, &true)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn only_the_host_with_the_token_gets_in_however_many_knock() {
        let here = Ipv4Addr::LOCALHOST;
        let listener = TcpListener::bind((here, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(accept(listener, here, [7; LANE_TOKEN]));
        // More than may knock at once say nothing, or the wrong thing.
        let mut others = Vec::new();
        for number in 0..GUESTS_MAX + 2 {
            let mut other = TcpStream::connect(address).await.unwrap();
            if number % 2 == 0 {
                other.write_all(&[8; LANE_TOKEN]).await.unwrap();
            }
            others.push(other);
        }
        let mut host = TcpStream::connect(address).await.unwrap();
        host.write_all(&[7; LANE_TOKEN]).await.unwrap();
        let accepted = tokio::time::timeout(4 * SHOW, accepting).await.unwrap().unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), host.local_addr().unwrap());
        assert!(TcpStream::connect(address).await.is_err(), "the port is closed");
    }
}

//! Port forwarding: TCP connections into and out of the VM as channels of an ssh connection (RFC 4254 section 7).

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use russh::{
    ChannelOpenFailure, ChannelWriteHalf,
    server::{ChannelOpenHandle, Handle, Msg},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::AbortHandle,
};

use super::{handler::Channels, inbound::Inbound, inbound::Pressure, names};

/// How long a connection may take to be made.
const CONNECT_WAIT: Duration = Duration::from_secs(15);
/// The most ports one ssh connection may listen on.
const LISTENERS_MAX: usize = 32;
/// The most connections one listener carries at once.
const CONNECTIONS_MAX: usize = 64;
/// How long to wait after accepting failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// The first port anybody may listen on.
const UNPRIVILEGED: u32 = 1024;
/// How much is read at once, in bytes.
const READ_MAX: usize = 32 * 1024;

/// Connects to `host`:`port` from inside the VM and carries the channel's bytes there.
pub async fn connect(
    host: String,
    port: u32,
    writer: ChannelWriteHalf<Msg>,
    inbound: Inbound,
    reply: ChannelOpenHandle,
) {
    let connected = tokio::time::timeout(CONNECT_WAIT, async {
        let port = u16::try_from(port).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let addresses: Vec<_> =
            names::resolve(&host).await?.into_iter().map(|address| SocketAddr::new(address, port)).collect();
        TcpStream::connect(&addresses[..]).await
    });
    match connected.await {
        Ok(Ok(stream)) => {
            reply.accept().await;
            carry_tcp(stream, writer, inbound).await;
        }
        Ok(Err(error)) => {
            tracing::debug!("cannot forward to {host}:{port}: {error}");
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
        }
        Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
    }
}

async fn carry_tcp(stream: TcpStream, writer: ChannelWriteHalf<Msg>, inbound: Inbound) {
    stream.set_nodelay(true).unwrap_or_default();
    let (reader, sink) = stream.into_split();
    carry(reader, sink, writer, inbound).await;
}

/// Carries bytes both ways until both have ended, or the channel has gone.
pub(super) async fn carry(
    mut reader: impl AsyncRead + Unpin,
    mut sink: impl AsyncWrite + Unpin,
    writer: ChannelWriteHalf<Msg>,
    inbound: Inbound,
) {
    let to_client = async {
        let mut buffer = vec![0; READ_MAX];
        while let Ok(length) = reader.read(&mut buffer).await {
            if length == 0 || writer.data_bytes(buffer[..length].to_vec()).await.is_err() {
                break;
            }
        }
        writer.eof().await
    };
    let waiting = inbound.clone();
    let from_client = async move {
        while let Some(bytes) = waiting.next().await {
            if sink.write_all(&bytes).await.is_err() {
                break;
            }
        }
        // A pipe ends by being closed, which is here.
        sink.shutdown().await
    };
    tokio::select! {
        (eof, end) = async { tokio::join!(to_client, from_client) } => tracing::debug!("a forwarded connection ended: {eof:?} {end:?}"),
        () = inbound.closed() => return,
    }
    writer.close().await.unwrap_or_default();
}

/// The ports one ssh connection listens on. Dropped, all are closed.
#[derive(Default)]
pub struct Listeners(HashMap<(String, u32), AbortHandle>);

impl Listeners {
    /// Listens on `port` (0: any) for the client; returns the port.
    pub async fn open(
        &mut self,
        address: &str,
        port: u32,
        root: bool,
        handle: Handle,
        channels: &Channels,
        pressure: &Pressure,
    ) -> io::Result<u16> {
        if self.0.len() >= LISTENERS_MAX {
            return Err(io::Error::other("too many ports are forwarded already"));
        }
        if port != 0 && port < UNPRIVILEGED && !root {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let number = u16::try_from(port).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let bind: IpAddr = match address {
            "" | "*" | "0.0.0.0" => Ipv4Addr::UNSPECIFIED.into(),
            "::" => Ipv6Addr::UNSPECIFIED.into(),
            "localhost" => Ipv4Addr::LOCALHOST.into(),
            other => other.parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        };
        let listener = TcpListener::bind((bind, number)).await?;
        let bound = listener.local_addr()?.port();
        let task =
            tokio::spawn(accept(listener, address.to_owned(), bound, handle, channels.clone(), pressure.clone()));
        self.0.insert((address.to_owned(), u32::from(bound)), task.abort_handle());
        Ok(bound)
    }

    /// Stops listening there; whether it did.
    pub fn close(&mut self, address: &str, port: u32) -> bool {
        self.0.remove(&(address.to_owned(), port)).inspect(AbortHandle::abort).is_some()
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.0.values().for_each(AbortHandle::abort);
    }
}

async fn accept(
    listener: TcpListener,
    address: String,
    port: u16,
    handle: Handle,
    channels: Channels,
    pressure: Pressure,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (handle, channels, pressure, address) =
            (handle.clone(), channels.clone(), pressure.clone(), address.clone());
        tokio::spawn(async move {
            let opened = handle
                .channel_open_forwarded_tcpip(address, u32::from(port), peer.ip().to_string(), u32::from(peer.port()))
                .await;
            match opened {
                Ok(channel) => {
                    let inbound = channels.inbound(channel.id(), &pressure);
                    let (_, writer) = channel.split();
                    carry_tcp(stream, writer, inbound).await;
                }
                Err(error) => tracing::debug!("the client refused a forwarded connection: {error}"),
            }
            drop(permit);
        });
    }
}

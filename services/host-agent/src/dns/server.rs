//! The sockets: UDP and TCP, in the lab's namespace or on the machine. A socket that cannot be had, or fails, is tried again
//! for ever; meanwhile `doctor` tells why.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    Shared,
    answers::Answers,
    gate::Gate,
    message::{self, Read, Transport},
    zone::now,
};
use crate::net::Lab;

/// Pause before a socket is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// The longest query in a datagram, in bytes; none has more than one name and a few options.
const QUERY_MAX: usize = 4096;
/// How long a connection may be without a whole query, and how long an asker may take to read its reply (RFC 7766 §6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 64;

/// Where to listen.
#[derive(Clone, Debug)]
pub enum Place {
    /// In the lab's namespace.
    Lab(Lab, SocketAddr),
    /// In the machine's own.
    Machine(SocketAddr),
}

impl Place {
    /// The address.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Lab(_, address) | Self::Machine(address) => *address,
        }
    }

    fn bind(&self) -> io::Result<(std::net::UdpSocket, TcpSocket)> {
        let (udp, tcp) = match self {
            Self::Lab(lab, _) => (lab.udp_socket()?, lab.tcp_socket()?),
            Self::Machine(address) => {
                let tcp = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                let udp = std::net::UdpSocket::bind(address)?;
                udp.set_nonblocking(true)?;
                (udp, tcp)
            }
        };
        if let (Self::Lab(..), SocketAddr::V4(address)) = (self, self.address()) {
            let address = nix::sys::socket::SockaddrIn::from(address);
            nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&udp), &address)?;
        }
        // The last agent's connections linger for a minute; they do not keep the next one from listening.
        tcp.set_reuseaddr(true)?;
        tcp.bind(self.address())?;
        Ok((udp, tcp))
    }
}

/// Serves one address for ever.
pub async fn run(place: Place, answers: Arc<Answers>, gate: Arc<Gate>, shared: Arc<Shared>) {
    let address = place.address();
    let server = Arc::new(Server { answers, gate, shared });
    let mut told = false;
    loop {
        let error = match server.serve(&place).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        server.shared.note(address, Some(error.to_string()));
        if !std::mem::replace(&mut told, true) {
            tracing::error!(%address, %error, "names are not served");
        }
        sleep(RETRY).await;
    }
}

enum Never {}

struct Server {
    answers: Arc<Answers>,
    gate: Arc<Gate>,
    shared: Arc<Shared>,
}

impl Server {
    async fn serve(self: &Arc<Self>, place: &Place) -> io::Result<Never> {
        let binding = place.clone();
        let bound = tokio::task::spawn_blocking(move || binding.bind());
        let (udp, tcp) = bound.await.map_err(io::Error::other)??;
        let (udp, tcp) = (Arc::new(UdpSocket::from_std(udp)?), tcp.listen(BACKLOG)?);
        self.shared.note(place.address(), None);
        tracing::info!(address = %place.address(), "names are served");
        tokio::select! {
            ended = self.datagrams(udp) => ended,
            ended = self.connections(tcp) => ended,
        }
    }

    /// Answers datagrams, each in a task of its own. Those that the gate does not let in are dropped: their askers ask again.
    async fn datagrams(self: &Arc<Self>, socket: Arc<UdpSocket>) -> io::Result<Never> {
        let mut hands = JoinSet::new();
        let mut buffer = vec![0; QUERY_MAX];
        loop {
            let (length, from) = tokio::select! {
                received = socket.recv_from(&mut buffer) => received?,
                Some(_) = hands.join_next() => continue,
            };
            let Some(pass) = self.gate.question(from.ip(), now()) else {
                self.shared.tally.dropped();
                continue;
            };
            let (server, socket, query) = (self.clone(), socket.clone(), buffer[..length].to_vec());
            hands.spawn(async move {
                if let Some(reply) = server.reply(&query, from.ip(), Transport::Udp).await
                    && let Err(error) = socket.send_to(&reply, from).await
                {
                    tracing::debug!(%from, %error, "a DNS reply was not sent");
                }
                drop(pass);
            });
        }
    }

    async fn connections(self: &Arc<Self>, listener: TcpListener) -> io::Result<Never> {
        let mut hands = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = hands.join_next() => continue,
            };
            let (stream, from) = match accepted {
                Ok(accepted) => accepted,
                // Gone before it was taken, or no descriptor is left for it: the listener itself is well.
                Err(error) => {
                    tracing::debug!(%error, "a DNS connection was not taken");
                    sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            let Some(pass) = self.gate.connection(from.ip(), now()) else {
                self.shared.tally.dropped();
                continue;
            };
            let server = self.clone();
            hands.spawn(async move {
                if let Err(error) = server.conversation(stream, from.ip()).await {
                    tracing::debug!(%from, %error, "a DNS connection ended");
                }
                drop(pass);
            });
        }
    }

    /// Answers queries one after the other until the asker has no more.
    async fn conversation(&self, mut stream: TcpStream, from: IpAddr) -> io::Result<()> {
        loop {
            let Some(query) = timeout(IDLE, next_query(&mut stream)).await?? else { return Ok(()) };
            let Some(_pass) = self.gate.question(from, now()) else {
                self.shared.tally.dropped();
                return Ok(());
            };
            let Some(reply) = self.reply(&query, from, Transport::Tcp).await else { return Ok(()) };
            let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
            let framed = [&length.to_be_bytes()[..], &reply].concat();
            timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }

    async fn reply(&self, bytes: &[u8], from: IpAddr, transport: Transport) -> Option<Vec<u8>> {
        match message::read(bytes) {
            Read::Noise => None,
            Read::Refusal(reply) => {
                self.shared.tally.refused();
                Some(reply)
            }
            Read::Question(question) => {
                let reply = self.answers.answer(&question, from).await;
                self.shared.tally.answered(reply.code.0);
                tracing::debug!(%from, name = %question.name(), kind = %question.kind(), code = %reply.code.0, "a DNS query");
                question.write(reply, self.answers.recursive(from), transport)
            }
        }
    }
}

/// The next query of a stream; nothing when the asker is done.
async fn next_query(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > QUERY_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a query that long is none"));
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    Ok(Some(query))
}

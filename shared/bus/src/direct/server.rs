//! The host's end: listens, and gives each connection to the session whose token it shows.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use contract::{
    SessionId,
    direct::{Direct, GO, GREETING, TOKEN_LIFE, Token, WELCOME},
};
use rand::RngExt;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    time::{Instant, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
    server::TlsStream,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{UNHEARD_MAX, provider, settle};
use crate::ByteStream;

/// How long a connection may take until it has shown a token and begun.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How many connections may be on their way to that; more are closed at once.
const PENDING_MAX: usize = 64;
/// How many of them may come from one machine ([`machine`]), so that it does not keep the others out.
const PENDING_EACH_MAX: usize = 16;
/// How many tokens may wait for their connection; a session that finds no room is on the bus.
const TOKENS_MAX: usize = 1024;
/// The pause after a connection could not be accepted, e.g. for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// A greeting: the word, a session, a token.
const GREETING_LENGTH: usize = GREETING.len() + 16 + 32;

/// Where a host listens for direct streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address of the machine.
    pub address: SocketAddr,
    /// What clients are told, each `address:port`; none means the address itself.
    pub advertised: Vec<String>,
}

/// What a host listens with for direct streams. Dropped, it listens no more; streams that began go on.
#[derive(Debug)]
pub struct Doors {
    shared: Arc<Shared>,
    addresses: Vec<String>,
    fingerprint: String,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    unheard: Duration,
    tickets: Mutex<HashMap<SessionId, Ticket>>,
    /// By who they are counted as ([`machine`]).
    pending: Mutex<HashMap<IpAddr, usize>>,
}

#[derive(Debug)]
struct Ticket {
    token: [u8; 32],
    expires: Instant,
    give: oneshot::Sender<TlsStream<TcpStream>>,
}

/// A session that waits for its direct connection.
#[derive(Debug)]
pub struct Arrival {
    session: SessionId,
    taken: oneshot::Receiver<TlsStream<TcpStream>>,
    shared: Arc<Shared>,
}

impl Doors {
    /// Listens, with a certificate made for this process.
    ///
    /// # Errors
    /// The address cannot be listened on, or no certificate can be made.
    pub async fn open(listen: &Listen) -> io::Result<Self> {
        Self::open_within(listen, UNHEARD_MAX).await
    }

    /// The same, where a client that does not take what it is sent for so long is taken for gone.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub async fn open_within(listen: &Listen, unheard: Duration) -> io::Result<Self> {
        let made = rcgen::generate_simple_self_signed(["warren".to_owned()]).map_err(io::Error::other)?;
        let certificate = made.cert.der().clone();
        let fingerprint = hex::encode(Sha256::digest(&certificate));
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .map_err(io::Error::other)?;
        let listener = TcpListener::bind(listen.address).await?;
        let here = listener.local_addr()?.to_string();
        let addresses = if listen.advertised.is_empty() { vec![here] } else { listen.advertised.clone() };
        let shared = Arc::new(Shared { unheard, tickets: Mutex::default(), pending: Mutex::default() });
        let stop = CancellationToken::new();
        let accepting = accept(listener, TlsAcceptor::from(Arc::new(config)), shared.clone());
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = accepting => {}
                () = stopped.cancelled() => {}
            }
        });
        Ok(Self { shared, addresses, fingerprint, _stop: stop.drop_guard() })
    }

    /// Makes a token for a session; nothing while too many wait.
    pub fn expect(&self, session: SessionId) -> Option<(Direct, Arrival)> {
        let mut token = [0; 32];
        rand::rng().fill(&mut token[..]);
        let (give, taken) = oneshot::channel();
        let mut tickets = self.shared.tickets();
        let now = Instant::now();
        tickets.retain(|_, ticket| ticket.expires > now && !ticket.give.is_closed());
        // A session that is opened twice keeps its first token.
        if tickets.len() >= TOKENS_MAX || tickets.contains_key(&session) {
            return None;
        }
        tickets.insert(session, Ticket { token, expires: now + TOKEN_LIFE, give });
        drop(tickets);
        let offer = Direct {
            addresses: self.addresses.clone(),
            token: Token(hex::encode(token)),
            fingerprint: self.fingerprint.clone(),
        };
        Some((offer, Arrival { session, taken, shared: self.shared.clone() }))
    }
}

impl Shared {
    fn tickets(&self) -> MutexGuard<'_, HashMap<SessionId, Ticket>> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more connection from there may try.
    fn enter(&self, peer: IpAddr) -> bool {
        let mut pending = self.pending();
        let all: usize = pending.values().sum();
        let own = pending.get(&peer).copied().unwrap_or_default();
        let room = all < PENDING_MAX && own < PENDING_EACH_MAX;
        if room {
            pending.insert(peer, own + 1);
        }
        room
    }

    fn leave(&self, peer: IpAddr) {
        let mut pending = self.pending();
        if let Some(own) = pending.get_mut(&peer) {
            *own -= 1;
            if *own == 0 {
                pending.remove(&peer);
            }
        }
    }

    /// Takes the ticket of a session away, if that is its token and its time is not over.
    fn redeem(&self, session: SessionId, token: &[u8]) -> Option<Ticket> {
        let mut tickets = self.tickets();
        let ticket = tickets.get(&session)?;
        let same = bool::from(ticket.token[..].ct_eq(token));
        if !same || ticket.expires <= Instant::now() {
            return None;
        }
        tickets.remove(&session)
    }
}

impl Arrival {
    /// Waits for the client's connection; for ever where it does not come, or went again.
    pub async fn stream(&mut self) -> ByteStream {
        match (&mut self.taken).await {
            Ok(tls) => ByteStream::direct(tls),
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.shared.tickets().remove(&self.session);
    }
}

/// Who a connection is counted as: its IPv4 address (also one written as IPv6, as sockets for both say it), or the /64 network of its IPv6 address, of which one
/// machine may take as many addresses as it likes (RFC 4291 section 2.5.4, RFC 8981).
fn machine(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((connection, peer)) if shared.enter(machine(peer.ip())) => {
                let (acceptor, shared) = (acceptor.clone(), shared.clone());
                tokio::spawn(async move {
                    let greeted = timeout(HANDSHAKE_MAX, greeted(connection, &acceptor, &shared)).await;
                    shared.leave(machine(peer.ip()));
                    match greeted {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "a direct connection was refused"),
                        Err(_) => tracing::debug!(%peer, "a direct connection took too long to begin"),
                    }
                });
            }
            Ok((_, peer)) => tracing::debug!(%peer, "one direct connection too many"),
            Err(error) => {
                tracing::warn!(%error, "a direct connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn greeted(connection: TcpStream, acceptor: &TlsAcceptor, shared: &Shared) -> io::Result<()> {
    settle(&connection, shared.unheard)?;
    let mut tls = acceptor.accept(connection).await?;
    let mut greeting = [0; GREETING_LENGTH];
    tls.read_exact(&mut greeting).await?;
    let refused = |why: &str| io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned());
    let (word, rest) = greeting.split_at(GREETING.len());
    let (session, token) = rest.split_at(16);
    if word != GREETING {
        return Err(refused("it is no client of Warren's"));
    }
    let session = uuid::Uuid::from_slice(session).map(SessionId).map_err(io::Error::other)?;
    let ticket = shared.redeem(session, token).ok_or_else(|| refused("no session waits for that token"))?;
    tls.write_all(&[WELCOME]).await?;
    tls.flush().await?;
    if tls.read_u8().await? != GO {
        return Err(refused("it did not go on"));
    }
    ticket.give.send(tls).map_err(|_| refused("its session has ended"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_machine_is_counted_once_whatever_addresses_it_takes() {
        let machine = |text: &str| machine(text.parse().unwrap()).to_string();
        assert_eq!(machine("2001:db8:1:2:3:4:5:6"), machine("2001:db8:1:2:ffff::1"));
        assert_ne!(machine("2001:db8:1:2::1"), machine("2001:db8:1:3::1"));
        assert_eq!(machine("::ffff:192.0.2.1"), "192.0.2.1");
        assert_ne!(machine("192.0.2.1"), machine("192.0.2.2"));
    }

    #[test]
    fn who_was_refused_or_has_left_is_not_remembered() {
        let shared = Shared { unheard: UNHEARD_MAX, tickets: Mutex::default(), pending: Mutex::default() };
        let at = |n: u32| IpAddr::from((0xC000_0200 + n).to_be_bytes());
        let entered: Vec<bool> = (0..PENDING_EACH_MAX + 4).map(|_| shared.enter(at(0))).collect();
        assert_eq!(entered.iter().filter(|entered| **entered).count(), PENDING_EACH_MAX);
        let others = (1..200).filter(|n| shared.enter(at(*n))).count();
        assert_eq!(others, PENDING_MAX - PENDING_EACH_MAX);
        assert_eq!(shared.pending().len(), 1 + others, "only who is let in counts");
        (0..PENDING_EACH_MAX).for_each(|_| shared.leave(at(0)));
        (1..=others as u32).for_each(|n| shared.leave(at(n)));
        assert!(shared.pending().is_empty());
    }
}

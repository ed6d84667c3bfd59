//! Published ports: the agent listens on the machine and connects from within the lab's namespace, so that the machine's own
//! rules and routes stay as they are and a lab without an uplink has them too. Connections end with the agent; the VM's own
//! address does not depend on it.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use contract::{
    ApiError, VmId,
    doctor::Check,
    feature::{Protocol, PublishedPort},
};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Capability, Site};
use crate::{
    activity::{Session, Sessions},
    net::Lab,
};

/// How many connections one port carries at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
/// How long a connection into the VM may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long an association of UDP lives after its last datagram, as in RFC 4787's recommendation.
const UDP_IDLE: Duration = Duration::from_secs(300);
/// How many senders one UDP port knows at once; others are not answered.
const UDP_SENDERS_MAX: usize = 1024;
/// The longest datagram.
const DATAGRAM: usize = 65_536;

/// Published ports of this host's VMs.
pub struct Ports {
    lab: Lab,
    address: Ipv4Addr,
    open: Mutex<HashMap<VmId, HashMap<PublishedPort, Open>>>,
    /// What serves the open connections of VMs that are being stopped.
    ending: Mutex<HashMap<VmId, Vec<DropGuard>>>,
    /// Why a port of a VM that runs is not published.
    problems: Mutex<HashMap<VmId, String>>,
    /// Open connections (of TCP; what UDP carries is seen at the tap).
    sessions: Sessions,
}

/// A port that is taken, and whoever serves it once the VM runs.
struct Open {
    socket: Socket,
    served: Option<Served>,
}

/// What serves a port; dropped, it ends.
struct Served {
    /// All of it, with the connections that are open.
    all: DropGuard,
    /// Taking new connections.
    _accepting: Option<DropGuard>,
}

enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Ports {
    /// Ports without an address are opened on `address`.
    pub fn new(lab: Lab, address: Ipv4Addr) -> Self {
        Self {
            lab,
            address,
            open: Mutex::default(),
            ending: Mutex::default(),
            problems: Mutex::default(),
            sessions: Sessions::default(),
        }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<VmId, HashMap<PublishedPort, Open>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ending(&self) -> MutexGuard<'_, HashMap<VmId, Vec<DropGuard>>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn problems(&self) -> MutexGuard<'_, HashMap<VmId, String>> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unpublished(&self, site: Site<'_>, error: &ApiError) {
        tracing::error!(vm.id = %site.spec.id, %error, "a VM's port is not published");
        self.problems().insert(site.spec.id, error.message.clone());
    }

    fn forget(&self, vm: VmId) {
        self.sessions.retain(|other| other != vm);
        self.open().remove(&vm);
        self.ending().remove(&vm);
        self.problems().remove(&vm);
    }

    /// Takes what is wanted and not taken yet, lets go of the rest.
    fn take(&self, site: Site<'_>) -> Result<(), ApiError> {
        let wanted = &site.spec.features.ports;
        let mut all = self.open();
        let open = all.entry(site.spec.id).or_default();
        open.retain(|port, _| wanted.contains(port));
        let mut refused = None;
        for port in wanted {
            if open.contains_key(port) {
                continue;
            }
            match self.bind(port) {
                Ok(socket) => drop(open.insert(*port, Open { socket, served: None })),
                // The others are taken all the same: one that is in use does not close them to an adopted VM.
                Err(error) => refused = refused.or_else(|| Some(unavailable(port, &error))),
            }
        }
        refused.map_or(Ok(()), Err)
    }

    fn bind(&self, port: &PublishedPort) -> io::Result<Socket> {
        let address = SocketAddrV4::new(port.address.unwrap_or(self.address), port.host);
        match port.protocol {
            Protocol::Tcp => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Socket::Tcp(listener))
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(address)?;
                socket.set_nonblocking(true)?;
                Ok(Socket::Udp(socket))
            }
        }
    }

    fn serve(&self, vm: VmId, port: PublishedPort, socket: &Socket, guest: Ipv4Addr) -> io::Result<Served> {
        let stop = CancellationToken::new();
        let to = SocketAddrV4::new(guest, port.guest);
        let (lab, token) = (self.lab.clone(), stop.clone());
        let accepting = match socket {
            Socket::Tcp(listener) => {
                let accepting = stop.child_token();
                let listener = tokio::net::TcpListener::from_std(listener.try_clone()?)?;
                let sessions = self.sessions.clone();
                let used = move || sessions.open(vm);
                let accept = accepting.clone();
                tokio::spawn(accept.run_until_cancelled_owned(tcp(listener, lab, to, used, token)));
                Some(accepting.drop_guard())
            }
            Socket::Udp(socket) => {
                let socket = Arc::new(tokio::net::UdpSocket::from_std(socket.try_clone()?)?);
                tokio::spawn(token.run_until_cancelled_owned(udp(socket, lab, to, stop.clone())));
                None
            }
        };
        Ok(Served { all: stop.drop_guard(), _accepting: accepting })
    }
}

fn unavailable(port: &PublishedPort, error: &io::Error) -> ApiError {
    ApiError::failed_precondition(format!("the host's port {port} cannot be taken: {error}"))
        .hint("another program of the host may have it; publish another")
}

async fn tcp(
    listener: tokio::net::TcpListener,
    lab: Lab,
    to: SocketAddrV4,
    used: impl Fn() -> Session,
    stop: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(turn) = room.clone().acquire_owned().await else { return };
        let (mut outside, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the peer is gone already: neither ends the port.
                tracing::debug!(%error, "a connection to a published port was not accepted");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let (lab, stop, open) = (lab.clone(), stop.clone(), used());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            let _held = (turn, open);
            match timeout(CONNECT, connect(&lab, to)).await {
                Ok(Ok(mut inside)) => {
                    // Either side may end it at any time.
                    drop(tokio::io::copy_bidirectional(&mut outside, &mut inside).await);
                }
                Ok(Err(error)) => tracing::debug!(%to, %error, "a published port leads nowhere"),
                Err(_) => tracing::debug!(%to, "a published port leads nowhere: no answer"),
            }
        }));
    }
}

async fn connect(lab: &Lab, to: SocketAddrV4) -> io::Result<tokio::net::TcpStream> {
    let lab = lab.clone();
    let socket = tokio::task::spawn_blocking(move || lab.tcp_socket()).await.map_err(io::Error::other)??;
    socket.connect(to.into()).await
}

/// Each sender gets a socket of its own towards the VM, so that answers find their way back.
async fn udp(outside: Arc<tokio::net::UdpSocket>, lab: Lab, to: SocketAddrV4, stop: CancellationToken) {
    let senders: Arc<Mutex<HashMap<SocketAddr, Arc<tokio::net::UdpSocket>>>> = Arc::default();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let Ok((length, sender)) = outside.recv_from(&mut buffer).await else { continue };
        let known = senders.lock().unwrap_or_else(PoisonError::into_inner).get(&sender).cloned();
        let inside = match known {
            Some(inside) => inside,
            None => {
                let full = senders.lock().unwrap_or_else(PoisonError::into_inner).len() >= UDP_SENDERS_MAX;
                let Some(inside) = (if full { None } else { associate(&lab, to).await }) else { continue };
                senders.lock().unwrap_or_else(PoisonError::into_inner).insert(sender, inside.clone());
                let (outside, answered, senders) = (outside.clone(), inside.clone(), senders.clone());
                tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
                    answers(&outside, &answered, sender).await;
                    senders.lock().unwrap_or_else(PoisonError::into_inner).remove(&sender);
                }));
                inside
            }
        };
        // A datagram that is lost is lost, as on any network.
        drop(inside.send(&buffer[..length]).await);
    }
}

async fn associate(lab: &Lab, to: SocketAddrV4) -> Option<Arc<tokio::net::UdpSocket>> {
    let lab = lab.clone();
    let socket = tokio::task::spawn_blocking(move || lab.udp_socket()).await.ok()?.ok()?;
    let socket = tokio::net::UdpSocket::from_std(socket).ok()?;
    socket.connect(to).await.ok()?;
    Some(Arc::new(socket))
}

/// Carries answers back until none has come for long.
async fn answers(outside: &tokio::net::UdpSocket, inside: &tokio::net::UdpSocket, sender: SocketAddr) {
    let mut buffer = vec![0; DATAGRAM];
    while let Ok(received) = timeout(UDP_IDLE, inside.recv(&mut buffer)).await {
        // An error is a refused datagram (ICMP): the next may be welcome.
        if let Ok(length) = received {
            drop(outside.send_to(&buffer[..length], sender).await);
        }
    }
}

impl Capability for Ports {
    fn name(&self) -> &'static str {
        "ports"
    }

    fn prepare(&self, site: Site<'_>) -> Result<(), ApiError> {
        self.take(site)
    }

    fn after_boot(&self, site: Site<'_>) {
        self.problems().remove(&site.spec.id);
        if let Err(error) = self.take(site) {
            self.unpublished(site, &error);
        }
        let guest = site.spec.address.addr();
        for (port, open) in self.open().entry(site.spec.id).or_default() {
            if open.served.is_none() {
                match self.serve(site.spec.id, *port, &open.socket, guest) {
                    Ok(served) => open.served = Some(served),
                    Err(error) => self.unpublished(site, &unavailable(port, &error)),
                }
            }
        }
    }

    fn changed(&self, site: Site<'_>) -> Result<(), ApiError> {
        self.take(site)?;
        self.after_boot(site);
        Ok(())
    }

    /// New TCP connections are refused at once; open ones may end in peace while the guest powers off.
    fn before_stop(&self, site: Site<'_>) {
        let open = self.open().remove(&site.spec.id).unwrap_or_default();
        let served = open.into_values().filter_map(|open| open.served).map(|served| served.all);
        self.ending().entry(site.spec.id).or_default().extend(served);
    }

    fn after_stop(&self, site: Site<'_>) {
        self.forget(site.spec.id);
    }

    fn cleanup(&self, site: Site<'_>) -> Result<(), ApiError> {
        self.forget(site.spec.id);
        Ok(())
    }

    fn used_at(&self, vm: VmId, now_ms: u64) -> u64 {
        self.sessions.used_at(vm, now_ms)
    }

    fn doctor(&self) -> Vec<Check> {
        let problems = self.problems();
        if problems.is_empty() {
            return vec![Check::pass("ports", "every port of a VM that runs is published")];
        }
        let mend = "end the program that has the port and restart the VM, or publish another (`warren vm set -p`)";
        problems.iter().map(|(vm, why)| Check::fail("ports", format!("VM {vm}: {why}")).mend(mend)).collect()
    }
}

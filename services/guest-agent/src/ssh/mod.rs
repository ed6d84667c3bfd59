//! The ssh server: for people and their tools, over the VM's network and through the channel.
//!
//! Over the network only the operator's keys log in ([`auth`]); who comes through the channel was let in by the host
//! already. A session's process is [`session`], port forwarding is [`forward`] and, to unix sockets, [`streamlocal`], sftp is guest-agent once more, as the
//! logged-in user ([`sftp`]).

mod auth;
mod forward;
mod handler;
mod inbound;
pub mod names;
mod session;
pub mod sftp;
pub mod streamlocal;
mod terminal;

use std::{
    io,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use contract::config_drive::Settings;
use russh::{
    MethodKind, MethodSet, SshId,
    keys::{PrivateKey, PublicKey},
    server::Config,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
};

use handler::Handler;

use crate::process::Cgroups;

/// The port everybody expects.
const PORT: u16 = 22;
/// The port where the image has an sshd of its own on [`PORT`].
const PORT_BESIDE_SSHD: u16 = 2222;
/// Where an image's own sshd is.
const SSHD: [&str; 2] = ["/usr/sbin/sshd", "/usr/bin/sshd"];
/// The most connections over the network at once.
const CONNECTIONS_MAX: usize = 64;
/// How long somebody may take to log in.
const LOGIN_WAIT: Duration = Duration::from_secs(60);
/// How often a silent client is asked whether it is still there; three times without an answer end its connection.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// How long a refused key takes, so that guessing is slow.
const REJECTION: Duration = Duration::from_millis(300);
/// The most keys a client may try.
const ATTEMPTS_MAX: usize = 10;
/// How long to wait after accepting failed (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The ssh server.
#[derive(Clone)]
pub struct Server {
    network: Arc<Config>,
    trusted: Arc<Config>,
    lab: Arc<Lab>,
}

/// What every connection shares.
struct Lab {
    keys: Vec<PublicKey>,
    problems: Vec<String>,
    environment: Vec<String>,
    program: Arc<OwnedFd>,
    cgroups: Cgroups,
    /// Whether each open connection is logged in.
    connections: Mutex<Vec<Weak<AtomicBool>>>,
}

impl Server {
    /// A server with the VM's host key and the operator's keys. `program` is guest-agent itself, for sftp.
    ///
    /// # Errors
    /// The host key cannot be read.
    pub fn new(
        settings: &Settings,
        program: Arc<OwnedFd>,
        cgroups: Cgroups,
    ) -> Result<Self, russh::keys::ssh_key::Error> {
        let host_key = PrivateKey::from_openssh(&settings.ssh_host_key)?;
        let config = |methods: &[MethodKind]| Config {
            server_id: SshId::Standard(concat!("SSH-2.0-Warren_", env!("CARGO_PKG_VERSION")).into()),
            methods: MethodSet::from(methods),
            auth_rejection_time: REJECTION,
            auth_rejection_time_initial: Some(Duration::ZERO),
            keys: vec![host_key.clone()],
            window_size: inbound::WINDOW,
            max_auth_attempts: ATTEMPTS_MAX,
            inactivity_timeout: None,
            keepalive_interval: Some(KEEP_ALIVE),
            nodelay: true,
            ..Config::default()
        };
        let (keys, problems) = auth::parse_keys(&settings.ssh_keys);
        let environment = settings.image.env.clone();
        let lab = Lab { keys, problems, environment, program, cgroups, connections: Mutex::default() };
        Ok(Self {
            network: Arc::new(config(&[MethodKind::PublicKey])),
            trusted: Arc::new(config(&[MethodKind::None])),
            lab: Arc::new(lab),
        })
    }

    /// What is wrong with the operator's keys, where something is.
    pub fn problems(&self) -> &[String] {
        &self.lab.problems
    }

    /// How many connections are logged in.
    pub fn logged_in(&self) -> u32 {
        let mut connections = self.lab.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|connection| connection.strong_count() > 0);
        let open = connections.iter().filter_map(Weak::upgrade);
        u32::try_from(open.filter(|logged_in| logged_in.load(Ordering::SeqCst)).count()).unwrap_or(u32::MAX)
    }

    /// Remembers a connection for as long as it is open.
    fn enlist(&self, logged_in: &Arc<AtomicBool>) {
        let mut connections = self.lab.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|connection| connection.strong_count() > 0);
        connections.push(Arc::downgrade(logged_in));
    }

    /// Listens on the VM's address from now on; returns the port.
    ///
    /// # Errors
    /// No port can be had there.
    pub async fn listen(&self, address: Ipv4Addr) -> io::Result<u16> {
        let beside = SSHD.iter().any(|path| Path::new(path).is_file());
        let listener = match TcpListener::bind((address, if beside { PORT_BESIDE_SSHD } else { PORT })).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && !beside => {
                TcpListener::bind((address, PORT_BESIDE_SSHD)).await?
            }
            listener => listener?,
        };
        let port = listener.local_addr()?.port();
        tokio::spawn(self.clone().accept(listener));
        Ok(port)
    }

    async fn accept(self, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = stream.set_nodelay(true) {
                            tracing::debug!("cannot set TCP_NODELAY: {error}");
                        }
                        server.serve_network(stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!("cannot accept an ssh connection: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves one connection that needs one of the operator's keys.
    pub async fn serve_network<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.serve(Arc::clone(&self.network), stream, false).await;
    }

    /// Serves one connection that needs no key.
    pub async fn serve_trusted<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.serve(Arc::clone(&self.trusted), stream, true).await;
    }

    async fn serve<S>(&self, config: Arc<Config>, stream: S, trusted: bool)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handler = Handler::new(Arc::clone(&self.lab), trusted);
        let logged_in = handler.logged_in();
        self.enlist(&logged_in);
        let login = async {
            match tokio::time::timeout(LOGIN_WAIT, russh::server::run_stream(config, stream, handler)).await {
                Ok(session) => session,
                Err(_) => Err(russh::Error::ConnectionTimeout),
            }
        };
        let mut session = match login.await {
            Ok(session) => session,
            Err(error) => return tracing::debug!("an ssh connection did not begin: {error}"),
        };
        let ended = match tokio::time::timeout(LOGIN_WAIT, &mut session).await {
            Ok(ended) => ended,
            Err(_) if logged_in.load(Ordering::SeqCst) => session.await,
            Err(_) => {
                let handle = session.handle();
                let goodbye =
                    handle.disconnect(russh::Disconnect::ByApplication, "login took too long".into(), String::new());
                goodbye.await.and(Err(russh::Error::ConnectionTimeout))
            }
        };
        if let Err(error) = ended {
            tracing::debug!("an ssh connection ended: {error}");
        }
    }
}

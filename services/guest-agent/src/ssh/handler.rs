//! One ssh connection: logs its user in and keeps track of its channels. It never waits for a channel's reader.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use contract::workspace::TerminalSize;
use russh::{
    Channel, ChannelId, ChannelOpenFailure, Pty, Sig,
    server::{Auth, ChannelOpenHandle, Msg, PublicKeyOffer, Session, VerifiedPublicKey},
};

use super::{
    Lab, auth,
    forward::{self, Listeners},
    inbound::{Inbound, Pressure},
    session::{self, Pending, What},
    streamlocal,
    terminal::{self, Request},
};
use crate::process::{Control, user::Account};

/// The most channels of one connection at once.
const CHANNELS_MAX: usize = 128;
/// The most variables a client may set for one session.
const VARIABLES_MAX: usize = 64;
/// How long a connection whose readers lag is held up at each of its packets.
const LAG: Duration = Duration::from_millis(10);

/// The handler of one connection.
pub struct Handler {
    lab: Arc<Lab>,
    trusted: bool,
    logged_in: Arc<AtomicBool>,
    account: Option<Account>,
    pressure: Pressure,
    channels: Channels,
    sessions: HashMap<ChannelId, State>,
    listeners: Listeners,
}

/// A session channel: asked for, or with a process.
enum State {
    Pending(Box<Pending>),
    Running(Option<Control>),
}

/// The channels of a connection.
#[derive(Clone, Default)]
pub struct Channels(Arc<Mutex<HashMap<ChannelId, Inbound>>>);

impl Channels {
    fn lock(&self) -> MutexGuard<'_, HashMap<ChannelId, Inbound>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What the client sends on that channel.
    pub fn inbound(&self, id: ChannelId, pressure: &Pressure) -> Inbound {
        self.lock().entry(id).or_insert_with(|| Inbound::new(pressure.clone())).clone()
    }

    fn is_full(&self) -> bool {
        self.lock().len() >= CHANNELS_MAX
    }
}

impl Handler {
    /// A handler; `trusted` connections need no key.
    pub fn new(lab: Arc<Lab>, trusted: bool) -> Self {
        Self {
            lab,
            trusted,
            logged_in: Arc::default(),
            account: None,
            pressure: Pressure::default(),
            channels: Channels::default(),
            sessions: HashMap::new(),
            listeners: Listeners::default(),
        }
    }

    /// Becomes true when its user has logged in.
    pub fn logged_in(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.logged_in)
    }

    fn log_in(&mut self, user: &str, allowed: bool) -> Auth {
        self.account = if allowed { auth::account(user) } else { None };
        if self.account.is_none() {
            return Auth::reject();
        }
        self.logged_in.store(true, Ordering::SeqCst);
        Auth::Accept
    }

    fn pending(&mut self, id: ChannelId) -> Option<&mut Pending> {
        match self.sessions.get_mut(&id) {
            Some(State::Pending(pending)) => Some(pending),
            _ => None,
        }
    }

    /// Starts a session's process, once.
    fn start(&mut self, id: ChannelId, what: What, session: &mut Session) -> Result<(), russh::Error> {
        let pending = match self.sessions.remove(&id) {
            Some(State::Pending(pending)) => pending,
            other => {
                self.sessions.extend(other.map(|running| (id, running)));
                return session.channel_failure(id);
            }
        };
        let Some(account) = &self.account else { return session.channel_failure(id) };
        session.channel_success(id)?;
        let inbound = self.channels.inbound(id, &self.pressure);
        let control = session::start(*pending, what, &self.lab, account, session.handle(), inbound);
        self.sessions.insert(id, State::Running(control));
        Ok(())
    }

    fn answer(id: ChannelId, taken: bool, session: &mut Session) -> Result<(), russh::Error> {
        if taken { session.channel_success(id) } else { session.channel_failure(id) }
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        for inbound in self.channels.lock().values() {
            inbound.close();
        }
    }
}

impl russh::server::Handler for Handler {
    type Error = russh::Error;

    async fn auth_none(&mut self, user: &str) -> Result<Auth, Self::Error> {
        Ok(self.log_in(user, self.trusted))
    }

    async fn auth_publickey_offered(&mut self, user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Self::Error> {
        let known = auth::is_known(&self.lab.keys, offer.public_key) && auth::account(user).is_some();
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        let known = auth::is_known(&self.lab.keys, key.public_key);
        Ok(self.log_in(user, known))
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.channels.is_full() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let id = channel.id();
        self.channels.inbound(id, &self.pressure);
        // The reading half goes: what the client sends comes through `data` below, which does not wait.
        let (_, writer) = channel.split();
        self.sessions.insert(id, State::Pending(Box::new(Pending::new(writer))));
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.channels.is_full() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let inbound = self.channels.inbound(channel.id(), &self.pressure);
        let (_, writer) = channel.split();
        tokio::spawn(forward::connect(host.to_owned(), port, writer, inbound, reply));
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        socket_path: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(account) = self.account.clone().filter(|_| !self.channels.is_full()) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let inbound = self.channels.inbound(channel.id(), &self.pressure);
        let (_, writer) = channel.split();
        let lab = Arc::clone(&self.lab);
        tokio::spawn(streamlocal::connect(socket_path.to_owned(), account, lab, writer, inbound, reply));
        Ok(())
    }

    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _: u32,
        _: u32,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        // A channel that forwarding opened: bytes may follow before its task has looked.
        self.channels.inbound(id, &self.pressure);
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut Session) -> Result<(), Self::Error> {
        let inbound = self.channels.lock().get(&id).cloned();
        if let Some(inbound) = inbound {
            inbound.push(data);
        }
        if self.pressure.is_high() {
            tokio::time::sleep(LAG).await;
        }
        Ok(())
    }

    fn adjust_window(&mut self, _: ChannelId, _: u32) -> u32 {
        self.pressure.window()
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        let inbound = self.channels.lock().get(&id).cloned();
        if let Some(inbound) = inbound {
            inbound.end();
        }
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Result<(), Self::Error> {
        self.sessions.remove(&id);
        let inbound = self.channels.lock().remove(&id);
        if let Some(inbound) = inbound {
            inbound.close();
        }
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let pending = self.pending(id);
        let taken = pending.is_some();
        if let Some(pending) = pending {
            pending.terminal =
                Some(Request { term: term.to_owned(), size: terminal::size(columns, rows), modes: modes.to_vec() });
        }
        Self::answer(id, taken, session)
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let harmless = matches!(name, "LANG" | "TERM" | "COLORTERM") || name.starts_with("LC_");
        let pending = self.pending(id).filter(|pending| harmless && pending.variables.len() < VARIABLES_MAX);
        let taken = pending.is_some();
        if let Some(pending) = pending {
            pending.variables.push((name.to_owned(), value.to_owned()));
        }
        Self::answer(id, taken, session)
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        self.start(id, What::Shell, session)
    }

    async fn exec_request(&mut self, id: ChannelId, command: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        match String::from_utf8(command.to_vec()) {
            Ok(command) => self.start(id, What::Command(command), session),
            Err(_) => session.channel_failure(id),
        }
    }

    async fn subsystem_request(&mut self, id: ChannelId, name: &str, session: &mut Session) -> Result<(), Self::Error> {
        match name {
            "sftp" => self.start(id, What::Sftp, session),
            _ => session.channel_failure(id),
        }
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        let size: TerminalSize = terminal::size(columns, rows);
        match self.sessions.get_mut(&id) {
            Some(State::Running(Some(control))) => control.resize(size),
            Some(State::Pending(pending)) => {
                if let Some(terminal) = &mut pending.terminal {
                    terminal.size = size;
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _: &mut Session) -> Result<(), Self::Error> {
        if let (Some(State::Running(Some(control))), Some(number)) =
            (self.sessions.get(&id), session::signal_number(&signal))
        {
            control.signal(number);
        }
        Ok(())
    }

    async fn x11_request(
        &mut self,
        id: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(id)
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let root = self.account.as_ref().is_some_and(|account| account.uid == 0);
        match self.listeners.open(address, *port, root, session.handle(), &self.channels, &self.pressure).await {
            Ok(bound) => {
                *port = u32::from(bound);
                Ok(true)
            }
            Err(error) => {
                tracing::debug!("cannot forward port {port}: {error}");
                Ok(false)
            }
        }
    }

    async fn cancel_tcpip_forward(&mut self, address: &str, port: u32, _: &mut Session) -> Result<bool, Self::Error> {
        Ok(self.listeners.close(address, port))
    }
}

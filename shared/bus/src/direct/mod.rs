//! Direct streams ([`contract::direct`]): a TLS connection to a host as one end of a [`crate::ByteStream`].

mod carry;
mod client;
mod server;

use std::{io, sync::Arc, time::Duration};

use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};

pub(crate) use carry::carry;
pub use client::connect;
pub use server::{Arrival, Doors, Listen};

/// How long what was sent to a peer may be left untaken until its connection ends. Linux counts a reader that stalls like a network that
/// is gone (TCP_USER_TIMEOUT, tcp(7)), so it is as long as people look at a pager.
const UNHEARD_MAX: Duration = Duration::from_secs(3600);
/// How often a quiet connection is asked whether it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Small writes leave at once, and a peer that is gone is noticed.
fn settle(connection: &TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let socket = socket2::SockRef::from(connection);
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE))?;
    socket.set_tcp_user_timeout(Some(UNHEARD_MAX))
}

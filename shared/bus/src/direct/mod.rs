//! Direct streams ([`contract::direct`]): a TLS connection to a host as one end of a [`crate::ByteStream`].

mod carry;
mod client;
mod credit;
mod send;
mod server;

use std::{io, sync::Arc, time::Duration};

use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};

pub(crate) use carry::carry;
pub use client::connect;
pub(crate) use credit::Credit;
pub use server::{Arrival, Doors, Listen};

/// How long what was sent to a peer may be left untaken until it is taken for gone (TCP_USER_TIMEOUT, tcp(7)). A peer takes everything
/// at once, whether its user reads or not, as none sends more than there is room for ([`Credit`]).
const UNHEARD_MAX: Duration = Duration::from_secs(30);
/// How often a quiet connection is asked whether it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Small writes leave at once, and a peer that is gone is noticed within `unheard`, or [`KEEP_ALIVE`] later.
fn settle(connection: &TcpStream, unheard: Duration) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let socket = socket2::SockRef::from(connection);
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEP_ALIVE).with_interval(KEEP_ALIVE))?;
    socket.set_tcp_user_timeout(Some(unheard))
}

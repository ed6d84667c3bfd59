//! **Lanes**: connections into a guest over TCP to its own address, each for one stream that moves many bytes.
//!
//! The network is the guest's to break, so a lane is only tried, and what has to go on without a network stays on the channel. Nobody
//! else takes the connection: the guard lets each address be used on its own tap alone, and the token came over the channel.

use std::{io, net::Ipv4Addr, time::Duration};

use contract::{
    direct::Token,
    guest::{LANE_TOKEN, Reply, Request},
};
use rand::RngExt;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    ANSWER, Guest,
    channel::{Channel, WeakChannel},
};
use crate::net::Lab;

/// How long a connection may take to be made: within a host it takes a millisecond, and a guest's firewall may swallow it.
const CONNECT: Duration = Duration::from_millis(1500);
/// How often it is looked whether the guest is still there.
const LOOK: Duration = Duration::from_secs(10);
/// How long it may take to say so.
const PULSE: Duration = Duration::from_secs(15);
/// The bytes of one yamux frame.
const FRAME: usize = 128 * 1024;

/// The way to a guest's address.
#[derive(Clone, Debug)]
pub struct Road {
    /// The network it is in.
    pub lab: Lab,
    /// Its address.
    pub address: Ipv4Addr,
}

impl Guest {
    /// A lane, where one can be made.
    pub(super) async fn lane(&self) -> Option<Channel> {
        let road = self.road.as_ref()?;
        let mut secret = [0; LANE_TOKEN];
        rand::rng().fill(&mut secret);
        let port = match self.answer(&Request::Lane(Token(hex::encode(secret))), ANSWER).await {
            Ok((_, Reply::Lane(port))) => port,
            answer => {
                tracing::debug!(?answer, "the guest offers no lane");
                return None;
            }
        };
        match timeout(CONNECT, road.connect(port, &secret)).await {
            Ok(Ok(pipe)) => {
                let mut config = yamux::Config::default();
                config.set_split_send_size(FRAME);
                let channel = self.channel.clone();
                Some(Channel::once(pipe, config, |lane| dead(lane, channel)))
            }
            failed => {
                tracing::debug!(?failed, address = %road.address, "a guest's lane cannot be made, its channel is taken");
                None
            }
        }
    }
}

impl Road {
    async fn connect(&self, port: u16, secret: &[u8]) -> io::Result<TcpStream> {
        let lab = self.lab.clone();
        let socket = tokio::task::spawn_blocking(move || lab.tcp_socket()).await??;
        let mut stream = socket.connect((self.address, port).into()).await?;
        stream.set_nodelay(true)?;
        stream.write_all(secret).await?;
        Ok(stream)
    }
}

/// Returns when the guest answers on its channel and not on the lane: its network is down. A guest that is paused or busy answers on neither.
async fn dead(lane: WeakChannel, channel: Channel) {
    loop {
        sleep(LOOK).await;
        let Some(lane) = lane.upgrade() else { return std::future::pending().await };
        let (by_lane, by_channel) = tokio::join!(pulse(&lane), pulse(&channel));
        if !by_lane && by_channel {
            tracing::info!("a guest's lane is dead: its network does not carry it any more");
            return;
        }
    }
}

async fn pulse(channel: &Channel) -> bool {
    let asked = async { super::exchange(&mut channel.open().await?, &Request::Ping).await };
    matches!(timeout(PULSE, asked).await, Ok(Ok(Reply::Ok)))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    /// A guest that answers every request with `ok`.
    fn answering(pipe: DuplexStream) {
        tokio::spawn(async move {
            let mut connection = yamux::Connection::new(pipe.compat(), yamux::Config::default(), yamux::Mode::Server);
            while let Some(Ok(stream)) = std::future::poll_fn(|cx| connection.poll_next_inbound(cx)).await {
                tokio::spawn(async move {
                    let mut stream = tokio_util::compat::FuturesAsyncReadCompatExt::compat(stream);
                    let length = stream.read_u32().await.unwrap();
                    stream.read_exact(&mut vec![0; length as usize]).await.unwrap();
                    stream.write_all(b"\0\0\0\x04\"ok\"").await.unwrap();
                    stream.shutdown().await.unwrap_or_default();
                });
            }
        });
    }

    fn channel(pipe: DuplexStream) -> Channel {
        Channel::once(pipe, yamux::Config::default(), |_| std::future::pending())
    }

    /// What becomes of a lane whose guest answers there, and on its channel, or does not: whether it ends by itself.
    async fn ends(on_lane: bool, on_channel: bool) -> bool {
        let ((host, guest), (lane, other)) = (duplex(1 << 16), duplex(1 << 16));
        let mut silent = Vec::new();
        for (pipe, answers) in [(guest, on_channel), (other, on_lane)] {
            if answers { answering(pipe) } else { silent.push(pipe) }
        }
        let channel = channel(host);
        let lane = Channel::once(lane, yamux::Config::default(), |lane| dead(lane, channel));
        let mut stream = lane.open().await.unwrap();
        // Written, so that yamux tells the other side of the stream.
        stream.write_all(&[0]).await.unwrap();
        timeout(4 * (LOOK + PULSE), stream.read_u8()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_is_silent_while_the_channel_answers_ends_and_one_of_a_paused_guest_does_not() {
        assert!(ends(false, true).await);
        assert!(!ends(false, false).await);
        assert!(!ends(true, true).await);
        assert!(!ends(true, false).await);
    }
}

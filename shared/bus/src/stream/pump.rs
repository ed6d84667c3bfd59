//! The task between one end's pipe and the bus.

use std::time::Duration;

use async_nats::{Subscriber, connection::State};
use bytes::{Bytes, BytesMut};
use contract::stream::{DATA_MAX, LOST, Packet, RECONNECT_MAX, WINDOW};
use futures::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    sync::oneshot,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    SharedEnding,
    parting::Parting,
    receiver::{Receiver, Taken},
    sender::Sender,
    with_ending,
};
use crate::Bus;

/// How often an end says something even if there is nothing to say.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Unacknowledged for this long: sent again.
const RESEND: Duration = Duration::from_secs(1);
/// How long an acknowledgement may wait for company.
const TICK: Duration = Duration::from_millis(20);
/// An acknowledgement is due at once after this many delivered bytes: a quarter of the window keeps a sender busy.
const ACKNOWLEDGE_EVERY: u64 = WINDOW / 4;
/// How long a finished end stays to repeat its last acknowledgement, and one that was reset to repeat that.
const LINGER: Duration = Duration::from_secs(3);

/// What the pump does next.
enum Next {
    Go,
    Finished,
    Broken(String),
}

pub(super) struct Pump {
    bus: Bus,
    subject: String,
    reader: ReadHalf<DuplexStream>,
    writer: WriteHalf<DuplexStream>,
    ending: SharedEnding,
    dropped: CancellationToken,
    /// Tells the user of the peer's first packet.
    heard_once: CancellationToken,
    sender: Sender,
    receiver: Receiver,
    buffer: BytesMut,
    /// The user reads no more.
    deaf: bool,
    /// The peer is gone, but its last bytes are still to be read.
    gone: bool,
    /// The user has been told that the peer's direction ended.
    closed: bool,
    acknowledged: Option<Packet>,
    acknowledged_delivered: u64,
    heard: Instant,
    /// How long silence is borne while nothing at all was heard; none once something was, or where the peer listened first.
    patience: Option<Duration>,
    said: Instant,
    progress: Instant,
    resent_for_gap: Instant,
}

impl Pump {
    pub(super) fn new(
        bus: Bus,
        subject: String,
        pipe: DuplexStream,
        ending: SharedEnding,
        dropped: CancellationToken,
        heard_once: CancellationToken,
    ) -> Self {
        let (reader, writer) = tokio::io::split(pipe);
        let now = Instant::now();
        Self {
            bus,
            subject,
            reader,
            writer,
            ending,
            dropped,
            heard_once,
            sender: Sender::new(),
            receiver: Receiver::new(),
            buffer: BytesMut::with_capacity(DATA_MAX),
            deaf: false,
            gone: false,
            closed: false,
            acknowledged: None,
            acknowledged_delivered: 0,
            heard: now,
            patience: None,
            said: now,
            progress: now,
            resent_for_gap: now,
        }
    }

    /// Bears more silence, or less, until the peer's first packet.
    pub(super) fn patient(mut self, patience: Option<Duration>) -> Self {
        self.patience = patience;
        self
    }

    /// Runs until both directions have ended or the stream broke; `finished` is dropped once the peer has been told.
    pub(super) async fn run(
        mut self,
        mut inbound: Subscriber,
        mut reset: oneshot::Receiver<String>,
        finished: DropGuard,
    ) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reset_open = true;
        let outcome = loop {
            let room = self.sender.room().min(DATA_MAX);
            let next = tokio::select! {
                message = inbound.next() => match message {
                    Some(message) => self.packet(message.payload).await,
                    None => Next::Broken(format!("{} is closed", LOST[1])),
                },
                count = read(&mut self.reader, &mut self.buffer, room), if room > 0 => self.outgoing(count).await,
                count = write(&mut self.writer, self.receiver.front()), if !self.deaf && self.receiver.front().is_some() => self.delivered(count).await,
                reason = &mut reset, if reset_open => match reason {
                    Ok(reason) => Next::Broken(reason),
                    Err(_) => { reset_open = false; Next::Go }
                },
                () = self.dropped.cancelled(), if !self.deaf => self.abandoned(),
                _ = tick.tick() => self.tick().await,
            };
            match next {
                Next::Go => {}
                Next::Finished => break None,
                Next::Broken(reason) => break Some(reason),
            }
        };
        match outcome {
            None => self.linger(inbound, finished).await,
            Some(reason) => self.broken(reason, inbound, finished).await,
        }
    }

    /// A packet came.
    async fn packet(&mut self, payload: Bytes) -> Next {
        self.heard = Instant::now();
        self.heard_once.cancel();
        let begins = self.patience.take().is_some();
        match Packet::decode(payload) {
            None => Next::Broken("the peer sent a malformed packet".to_owned()),
            Some(Packet::Reset { reason }) if self.receiver.is_whole() && !self.deaf => {
                with_ending(&self.ending, |ending| ending.unwanted = Some(reason));
                self.sender.give_up();
                self.gone = true;
                self.end_of_input().await
            }
            Some(Packet::Reset { reason }) => {
                with_ending(&self.ending, |ending| ending.broken.get_or_insert(reason.clone()).clone());
                Next::Broken(reason)
            }
            Some(Packet::Ack { received, limit, resend }) => {
                if self.sender.acknowledge(received, limit) {
                    self.progress = self.heard;
                }
                // An acceptor that has only begun to listen has missed what was written before.
                if resend || (begins && self.sender.waits()) {
                    self.send_again().await;
                }
                self.check()
            }
            Some(Packet::Data { offset, data }) => {
                let taken = self.receiver.data(offset, data);
                if self.deaf {
                    self.receiver.discard();
                }
                self.taken(taken).await
            }
            Some(Packet::Fin { length, digest }) => {
                let taken = self.receiver.fin(length, digest);
                let next = self.taken(taken).await;
                if matches!(next, Next::Go) { self.end_of_input().await } else { next }
            }
        }
    }

    async fn taken(&mut self, taken: Taken) -> Next {
        match taken {
            Taken::New => Next::Go,
            Taken::Repeated => {
                self.acknowledge(false).await;
                Next::Go
            }
            Taken::Gap => {
                // One request a round trip is enough: everything sent before it arrives is a gap too.
                if self.resent_for_gap.elapsed() > Duration::from_millis(100) {
                    self.resent_for_gap = Instant::now();
                    self.acknowledge(true).await;
                }
                Next::Go
            }
            Taken::Broken(reason) => Next::Broken(reason.to_owned()),
        }
    }

    /// The user wrote something, or ended.
    async fn outgoing(&mut self, count: std::io::Result<usize>) -> Next {
        let packet = match count {
            Ok(0) if self.dropped.is_cancelled() && !with_ending(&self.ending, |ending| ending.shut) => {
                return Next::Broken("closed".to_owned());
            }
            Ok(0) => self.sender.finish(),
            Ok(_) => {
                let data = self.buffer.split().freeze();
                self.sender.push(data)
            }
            Err(error) => return Next::Broken(error.to_string()),
        };
        if !self.sender_was_waiting() {
            self.progress = Instant::now();
        }
        self.say(packet).await;
        Next::Go
    }

    fn sender_was_waiting(&self) -> bool {
        self.progress.elapsed() < RESEND
    }

    /// The user read something.
    async fn delivered(&mut self, count: std::io::Result<usize>) -> Next {
        match count {
            Ok(count) => self.receiver.deliver(count),
            // The user's end is gone; `abandoned` decides what becomes of the rest.
            Err(_) => return self.abandoned(),
        }
        if self.receiver.delivered() - self.acknowledged_delivered >= ACKNOWLEDGE_EVERY {
            self.acknowledge(false).await;
        }
        self.end_of_input().await
    }

    /// Tells the user, once, that the peer's direction has ended.
    async fn end_of_input(&mut self) -> Next {
        if self.receiver.is_done() && !self.closed {
            self.closed = true;
            self.acknowledge(false).await;
            if let Err(error) = self.writer.shutdown().await {
                tracing::trace!(%error, "the reader is gone already");
            }
        }
        self.check()
    }

    /// The user dropped its end: what it had written before a shutdown still goes out, the rest is reset.
    fn abandoned(&mut self) -> Next {
        if !with_ending(&self.ending, |ending| ending.shut) {
            return Next::Broken("closed".to_owned());
        }
        self.deaf = true;
        self.receiver.discard();
        self.check()
    }

    fn check(&self) -> Next {
        let heard_all = self.receiver.is_done() && (self.closed || self.deaf);
        match (self.sender.is_done(), heard_all, self.deaf) {
            (true, true, _) => Next::Finished,
            (true, false, true) => Next::Broken("closed".to_owned()),
            _ => Next::Go,
        }
    }

    async fn tick(&mut self) -> Next {
        let now = Instant::now();
        let bearable = self.patience.unwrap_or(RECONNECT_MAX);
        if now - self.heard > bearable && !self.gone {
            return Next::Broken(given_up(self.connected(), bearable));
        }
        // Nobody listens before the first packet, so repeating would only fill the bus.
        if self.patience.is_none() && self.sender.waits() && now - self.progress > RESEND {
            self.progress = now;
            self.send_again().await;
        }
        let acknowledgement = self.receiver.acknowledgement(false);
        if self.acknowledged.as_ref() != Some(&acknowledgement) || now - self.said > KEEP_ALIVE {
            self.acknowledge(false).await;
        }
        Next::Go
    }

    async fn acknowledge(&mut self, resend: bool) {
        let acknowledgement = self.receiver.acknowledgement(false);
        self.acknowledged_delivered = self.receiver.delivered();
        self.acknowledged = Some(acknowledgement);
        self.say(self.receiver.acknowledgement(resend)).await;
    }

    async fn send_again(&mut self) {
        for packet in self.sender.again() {
            self.say(packet).await;
        }
    }

    fn connected(&self) -> bool {
        self.bus.client.connection_state() == State::Connected
    }

    async fn say(&mut self, packet: Packet) {
        self.said = Instant::now();
        // The client would keep it, and everything said again meanwhile, until it is connected; but what is lost is said again.
        if !self.connected() && !matches!(packet, Packet::Reset { .. }) {
            return;
        }
        // A failure is a closed connection, which the subscription's end tells too.
        if let Err(error) = self.bus.client.publish(self.subject.clone(), packet.encode()).await {
            tracing::debug!(%error, "a packet was not sent");
        }
    }

    /// Repeats the last acknowledgement while the peer asks for it.
    async fn linger(self, inbound: Subscriber, finished: DropGuard) {
        drop((self.reader, self.writer));
        if let Err(error) = self.bus.flush().await {
            tracing::debug!(%error, "the last acknowledgement may be lost");
        }
        drop(finished);
        let asks = |packet: Option<Packet>| matches!(packet, Some(Packet::Fin { .. } | Packet::Data { .. }));
        let parting = Parting { bus: self.bus, subject: self.subject, last: self.receiver.acknowledgement(false) };
        parting.repeat(inbound, asks, LINGER).await;
    }

    /// Tells the peer, unless it told this end. One that begins only later, or missed it, is told when it is heard of.
    async fn broken(mut self, reason: String, inbound: Subscriber, finished: DropGuard) {
        let by_peer = with_ending(&self.ending, |ending| {
            let by_peer = ending.broken.is_some();
            ending.broken.get_or_insert(reason.clone());
            by_peer
        });
        if by_peer {
            return;
        }
        let reset = Packet::Reset { reason };
        self.say(reset.clone()).await;
        if let Err(error) = self.bus.flush().await {
            tracing::debug!(%error, "a reset was not sent");
        }
        drop((self.reader, self.writer, finished));
        let stay = if self.heard_once.is_cancelled() { LINGER } else { self.patience.unwrap_or(RECONNECT_MAX) };
        let lives = |packet: Option<Packet>| !matches!(packet, Some(Packet::Reset { .. }));
        Parting { bus: self.bus, subject: self.subject, last: reset }.repeat(inbound, lives, stay).await;
    }
}

/// Why a stream of which nothing was heard is given up.
fn given_up(connected: bool, limit: Duration) -> String {
    let [silent, bus] = LOST;
    let lost = if connected { silent.to_owned() } else { format!("{bus} was lost") };
    format!("{lost} for {} s, which is as long as a stream waits for a reconnect", limit.as_secs())
}

async fn read(reader: &mut ReadHalf<DuplexStream>, buffer: &mut BytesMut, room: usize) -> std::io::Result<usize> {
    buffer.reserve(room);
    reader.take(room as u64).read_buf(buffer).await
}

async fn write(writer: &mut WriteHalf<DuplexStream>, bytes: Option<&Bytes>) -> std::io::Result<usize> {
    match bytes {
        Some(bytes) => writer.write(bytes).await,
        None => Ok(0),
    }
}

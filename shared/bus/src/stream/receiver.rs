//! The receiving half: what came in order and was not taken by the reader yet.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};
use contract::stream::{Packet, WINDOW};
use sha2::{Digest, Sha256};

/// Below so many bytes a piece is not kept by itself.
const SMALL: usize = 4 << 10;
/// How long what small pieces are put together to becomes.
const JOINED: usize = 64 << 10;

/// What a packet did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Went on.
    New,
    /// Had been here before: the peer missed an acknowledgement.
    Repeated,
    /// Something before it is missing.
    Gap,
    /// The peer does not keep the rules, or the bytes are not what it sent.
    Broken(&'static str),
}

pub(super) struct Receiver {
    received: u64,
    delivered: u64,
    pending: VecDeque<Bytes>,
    hasher: Sha256,
    finished: bool,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self { received: 0, delivered: 0, pending: VecDeque::new(), hasher: Sha256::new(), finished: false }
    }

    pub(super) fn data(&mut self, offset: u64, mut data: Bytes) -> Taken {
        if offset > self.received {
            return Taken::Gap;
        }
        let Ok(old) = usize::try_from(self.received - offset) else { return Taken::Repeated };
        if old >= data.len() {
            return Taken::Repeated;
        }
        if self.finished {
            return Taken::Broken("the peer sent bytes after its end");
        }
        data.advance(old);
        if self.received + data.len() as u64 > self.delivered + WINDOW {
            return Taken::Broken("the peer sent more than it was allowed");
        }
        self.hasher.update(&data);
        self.received += data.len() as u64;
        self.keep(data);
        Taken::New
    }

    /// Small pieces are put together: by itself each would keep the message it came in, and the buffer that was read into.
    fn keep(&mut self, data: Bytes) {
        if data.len() >= SMALL {
            return self.pending.push_back(data);
        }
        let joined = match self.pending.pop_back() {
            Some(last) if last.len() < JOINED => match last.try_into_mut() {
                Ok(mut last) => {
                    last.extend_from_slice(&data);
                    return self.pending.push_back(last.freeze());
                }
                Err(last) => Some(last),
            },
            last => last,
        };
        self.pending.extend(joined);
        self.pending.push_back(Bytes::copy_from_slice(&data));
    }

    pub(super) fn fin(&mut self, length: u64, digest: [u8; 32]) -> Taken {
        if self.finished {
            return Taken::Repeated;
        }
        if length > self.received {
            return Taken::Gap;
        }
        if length < self.received || self.hasher.clone().finalize()[..] != digest {
            return Taken::Broken("the bytes received are not the bytes sent");
        }
        self.finished = true;
        Taken::New
    }

    /// The bytes the reader gets next.
    pub(super) fn front(&self) -> Option<&Bytes> {
        self.pending.front()
    }

    /// The reader took `count` of [`Receiver::front`].
    pub(super) fn deliver(&mut self, count: usize) {
        self.delivered += count as u64;
        if let Some(front) = self.pending.front_mut() {
            front.advance(count);
            if front.is_empty() {
                self.pending.pop_front();
            }
        }
    }

    /// Drops what the reader will not take any more, so that the peer may finish.
    pub(super) fn discard(&mut self) {
        self.pending.clear();
        self.delivered = self.received;
    }

    /// Bytes the reader has taken.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The peer has ended its direction and all of it has come.
    pub(super) fn is_whole(&self) -> bool {
        self.finished
    }

    /// The peer has ended its direction and the reader has all of it.
    pub(super) fn is_done(&self) -> bool {
        self.finished && self.pending.is_empty()
    }

    pub(super) fn acknowledgement(&self, resend: bool) -> Packet {
        let received = self.received + u64::from(self.finished);
        Packet::Ack { received, limit: self.delivered + WINDOW, resend }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_kept_together_and_come_in_order() {
        let mut receiver = Receiver::new();
        let (mut sent, mut read) = (Vec::new(), Vec::new());
        for n in 0..100_000usize {
            let piece = if n % 1000 == 999 { vec![n as u8; SMALL] } else { vec![n as u8; 1 + n % 2] };
            assert_eq!(receiver.data(sent.len() as u64, Bytes::from(piece.clone())), Taken::New);
            sent.extend(piece);
            assert!(receiver.pending.len() < 300, "{}", receiver.pending.len());
            // The reader takes a little now and then, also from the middle of what is kept.
            while sent.len() - read.len() > WINDOW as usize / 2 {
                let front = receiver.front().unwrap();
                let count = front.len().min(777);
                read.extend_from_slice(&front[..count]);
                receiver.deliver(count);
            }
        }
        while let Some(front) = receiver.front() {
            read.extend_from_slice(front);
            let count = front.len();
            receiver.deliver(count);
        }
        assert!(read == sent);
    }
}

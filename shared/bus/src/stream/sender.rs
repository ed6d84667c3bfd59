//! The sending half: what was sent and not acknowledged, and how much more may go.

use std::collections::VecDeque;

use bytes::Bytes;
use contract::stream::{Packet, WINDOW};
use sha2::{Digest, Sha256};

/// Keeps every byte until the peer has acknowledged it.
pub(super) struct Sender {
    unacknowledged: VecDeque<(u64, Bytes)>,
    acknowledged: u64,
    next: u64,
    limit: u64,
    hasher: Sha256,
    fin: Option<Packet>,
    fin_acknowledged: bool,
}

impl Sender {
    pub(super) fn new() -> Self {
        Self {
            unacknowledged: VecDeque::new(),
            acknowledged: 0,
            next: 0,
            limit: WINDOW,
            hasher: Sha256::new(),
            fin: None,
            fin_acknowledged: false,
        }
    }

    /// How many bytes may be sent now.
    pub(super) fn room(&self) -> usize {
        if self.fin.is_some() { 0 } else { usize::try_from(self.limit.saturating_sub(self.next)).unwrap_or(usize::MAX) }
    }

    /// Whether something waits for an acknowledgement.
    pub(super) fn waits(&self) -> bool {
        !self.unacknowledged.is_empty() || (self.fin.is_some() && !self.fin_acknowledged)
    }

    /// The peer takes no more: nothing is left to do.
    pub(super) fn give_up(&mut self) {
        self.unacknowledged.clear();
        if self.fin.is_none() {
            self.finish();
        }
        self.fin_acknowledged = true;
    }

    pub(super) fn is_done(&self) -> bool {
        self.fin_acknowledged
    }

    /// Takes bytes to send; at most [`Sender::room`].
    pub(super) fn push(&mut self, data: Bytes) -> Packet {
        self.hasher.update(&data);
        let offset = self.next;
        self.next += data.len() as u64;
        self.unacknowledged.push_back((offset, data.clone()));
        Packet::Data { offset, data }
    }

    /// Ends the direction.
    pub(super) fn finish(&mut self) -> Packet {
        let fin = Packet::Fin { length: self.next, digest: self.hasher.clone().finalize().into() };
        self.fin = Some(fin.clone());
        fin
    }

    /// Takes an acknowledgement; whether it brought anything new.
    pub(super) fn acknowledge(&mut self, received: u64, limit: u64) -> bool {
        let fin_end = self.next + 1;
        if self.fin.is_some() && received == fin_end {
            self.unacknowledged.clear();
            self.acknowledged = self.next;
            return !std::mem::replace(&mut self.fin_acknowledged, true);
        }
        if received > self.next {
            return false;
        }
        let progress = received > self.acknowledged || limit > self.limit;
        self.acknowledged = self.acknowledged.max(received);
        self.limit = self.limit.max(limit);
        while self.unacknowledged.front().is_some_and(|(offset, data)| offset + data.len() as u64 <= self.acknowledged)
        {
            self.unacknowledged.pop_front();
        }
        progress
    }

    /// Everything to be sent again, in order.
    pub(super) fn again(&self) -> Vec<Packet> {
        let data =
            self.unacknowledged.iter().map(|(offset, data)| Packet::Data { offset: *offset, data: data.clone() });
        let fin = self.fin.clone().filter(|_| !self.fin_acknowledged);
        data.chain(fin).collect()
    }
}

//! Packets of a byte stream over the bus. A stream has two ends, the opener (who asked for it) and the
//! acceptor; each listens on its own subject and sends to the other's.
//!
//! Each direction counts bytes from 0. `Data` carries the offset of its first byte; the receiver
//! answers with `Ack`: how many bytes it took in order, and up to which offset the sender may go (credit). A gap (messages lost
//! in a reconnect) makes the receiver ask with `resend`, and the sender goes back to the acknowledged offset.
//! `Fin` ends a direction with the digest of all its bytes, and is acknowledged by an `Ack` of one more than the length.
//! `Reset` ends both directions at once with a reason.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The most bytes in one `Data` packet: far below NATS' 1 MiB, so that streams interleave fairly.
pub const DATA_MAX: usize = 32 * 1024;
/// How far a sender may be ahead of the receiver's reader, in bytes.
pub const WINDOW: u64 = 512 * 1024;
/// How long a reconnect may take: an end that hears nothing for longer gives the stream up. A restart of nats-server or a network
/// that is cut for less costs a resend. Longer would keep processes of guests alive for clients that are gone.
pub const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// How the reasons begin for which a stream ends because its ends lost each other, and not because one of them wanted it to.
pub const LOST: [&str; 2] = ["the other end has been silent", "the connection to the bus"];
/// The longest reason of a `Reset`, in bytes.
pub const REASON_MAX: usize = 1024;

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// Bytes from that offset on.
    Data {
        /// Offset of the first byte.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// What the receiver has, and how far the sender may go.
    Ack {
        /// Bytes received in order.
        received: u64,
        /// The sender may send up to this offset.
        limit: u64,
        /// Something is missing: send again from `received`.
        resend: bool,
    },
    /// No more bytes in this direction.
    Fin {
        /// How many there were.
        length: u64,
        /// Their SHA-256.
        digest: [u8; 32],
    },
    /// The end of both directions.
    Reset {
        /// Why.
        reason: String,
    },
}

/// Whether a stream that ended for this reason could go on with another, as its ends lost each other.
pub fn was_lost(reason: &str) -> bool {
    LOST.iter().any(|lost| reason.starts_with(lost))
}

impl Packet {
    /// The packet's bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Data { offset, data } => {
                out.reserve(9 + data.len());
                out.put_u8(1);
                out.put_u64(*offset);
                out.put_slice(data);
            }
            Self::Ack { received, limit, resend } => {
                out.put_u8(2);
                out.put_u64(*received);
                out.put_u64(*limit);
                out.put_u8(u8::from(*resend));
            }
            Self::Fin { length, digest } => {
                out.put_u8(3);
                out.put_u64(*length);
                out.put_slice(digest);
            }
            Self::Reset { reason } => {
                out.put_u8(4);
                let end = (0..=reason.len().min(REASON_MAX)).rev().find(|&i| reason.is_char_boundary(i)).unwrap_or(0);
                out.put_slice(&reason.as_bytes()[..end]);
            }
        }
        out.freeze()
    }

    /// Reads a packet; nothing when the bytes are none.
    pub fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.is_empty() {
            return None;
        }
        match bytes.get_u8() {
            1 if bytes.len() >= 8 && bytes.len() <= 8 + DATA_MAX => {
                Some(Self::Data { offset: bytes.get_u64(), data: bytes })
            }
            2 if bytes.len() == 17 => {
                Some(Self::Ack { received: bytes.get_u64(), limit: bytes.get_u64(), resend: bytes.get_u8() != 0 })
            }
            3 if bytes.len() == 40 => {
                let length = bytes.get_u64();
                let mut digest = [0; 32];
                digest.copy_from_slice(&bytes);
                Some(Self::Fin { length, digest })
            }
            4 if bytes.len() <= REASON_MAX => {
                Some(Self::Reset { reason: String::from_utf8_lossy(&bytes).into_owned() })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_packet_comes_back() {
        for packet in [
            Packet::Data { offset: 7, data: Bytes::from_static(b"abc") },
            Packet::Ack { received: 1, limit: 2, resend: true },
            Packet::Fin { length: 9, digest: [3; 32] },
            Packet::Reset { reason: "vm stopped".into() },
        ] {
            assert_eq!(Packet::decode(packet.encode()), Some(packet));
        }
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let reason = "é".repeat(REASON_MAX);
        let Some(Packet::Reset { reason }) = Packet::decode(Packet::Reset { reason }.encode()) else { panic!() };
        assert_eq!(reason, "é".repeat(REASON_MAX / 2));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            Packet::decode(Bytes::from(bytes));
        }
    }
}

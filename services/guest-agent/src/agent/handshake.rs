//! The preamble that begins each connection of a channel: [`MAGIC`], random bytes, [`MAGIC`] reversed.

use bytes::{Buf, BytesMut};
use contract::guest::MAGIC;

/// How many random bytes it has.
const NONCE: usize = 16;
/// Its length in bytes.
pub const LENGTH: usize = MAGIC.len() + NONCE + MAGIC.len();

/// A whole preamble.
pub type Preamble = [u8; LENGTH];

/// Whether these bytes are a preamble.
pub fn is_preamble(bytes: &[u8]) -> bool {
    bytes.len() == LENGTH && bytes[..MAGIC.len()] == MAGIC && bytes[MAGIC.len() + NONCE..].iter().eq(MAGIC.iter().rev())
}

/// Takes everything up to the last whole preamble off `buffer` and returns that; a host that gave up and tried
/// again has left several. Without one, only the bytes that may be the beginning of one stay.
pub fn take(buffer: &mut BytesMut) -> Option<Preamble> {
    let found = (0..(buffer.len() + 1).saturating_sub(LENGTH)).rev().find(|at| is_preamble(&buffer[*at..at + LENGTH]));
    match found {
        Some(at) => {
            buffer.advance(at);
            let preamble = buffer.split_to(LENGTH);
            preamble[..].try_into().ok()
        }
        None => {
            buffer.advance(buffer.len().saturating_sub(LENGTH - 1));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preamble(nonce: u8) -> Preamble {
        let mut bytes = [nonce; LENGTH];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[24..].iter_mut().zip(MAGIC.iter().rev()).for_each(|(to, from)| *to = *from);
        bytes
    }

    #[test]
    fn garbage_before_it_is_dropped_and_what_follows_is_kept() {
        let mut buffer = BytesMut::from(&b"left over \x00WARREN\x01 of an old connection"[..]);
        buffer.extend_from_slice(&preamble(7));
        buffer.extend_from_slice(b"rest");
        assert_eq!(take(&mut buffer), Some(preamble(7)));
        assert_eq!(&buffer[..], b"rest");
    }

    #[test]
    fn it_is_found_wherever_reads_split_it() {
        let whole = [b"xx\x00WAR".as_slice(), &preamble(0)].concat();
        for cut in 0..whole.len() {
            let mut buffer = BytesMut::from(&whole[..cut]);
            assert_eq!(take(&mut buffer), None, "cut at {cut}");
            buffer.extend_from_slice(&whole[cut..]);
            assert_eq!(take(&mut buffer), Some(preamble(0)), "cut at {cut}");
        }
    }

    #[test]
    fn the_last_of_several_counts() {
        let mut buffer = BytesMut::from(&[preamble(1), preamble(2)].concat()[..]);
        assert_eq!(take(&mut buffer), Some(preamble(2)));
        assert!(buffer.is_empty());
    }

    #[test]
    fn bytes_without_one_do_not_pile_up() {
        let mut buffer = BytesMut::from(&[0u8; 100_000][..]);
        assert_eq!(take(&mut buffer), None);
        assert_eq!(buffer.len(), LENGTH - 1);
    }
}

//! The keys that leave a job and let it go on: Ctrl-P Ctrl-Q, as with containers.

use bytes::{Bytes, BytesMut};

/// Ctrl-P.
const FIRST: u8 = 0x10;
/// Ctrl-Q.
const SECOND: u8 = 0x11;

/// Looks for the keys in what is typed.
#[derive(Debug, Default)]
pub struct LeaveKeys {
    /// The first one was typed, and is held back until the next byte.
    half: bool,
}

impl LeaveKeys {
    /// What of it goes on to the job, and whether the user leaves.
    pub fn pass(&mut self, typed: &[u8]) -> (Bytes, bool) {
        let mut on = BytesMut::with_capacity(typed.len() + 1);
        for byte in typed {
            if std::mem::take(&mut self.half) {
                if *byte == SECOND {
                    return (on.freeze(), true);
                }
                on.extend_from_slice(&[FIRST]);
            }
            if *byte == FIRST {
                self.half = true;
            } else {
                on.extend_from_slice(&[*byte]);
            }
        }
        (on.freeze(), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_found_wherever_reads_split_them_and_nothing_else_is_lost() {
        let pass = |pieces: &[&[u8]]| {
            let mut keys = LeaveKeys::default();
            let (mut all, mut leaves) = (Vec::new(), false);
            for piece in pieces {
                let (on, now) = keys.pass(piece);
                all.extend_from_slice(&on);
                leaves |= now;
            }
            (all, leaves)
        };
        assert_eq!(pass(&[b"ab\x10\x11c"]), (b"ab".to_vec(), true));
        assert_eq!(pass(&[b"a\x10", b"\x11"]), (b"a".to_vec(), true));
        assert_eq!(pass(&[b"a\x10", b"b\x11\x10\x10x"]), (b"a\x10b\x11\x10\x10x".to_vec(), false));
    }
}

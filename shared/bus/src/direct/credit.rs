//! Credit: the bytes that one end may still send because the other has room for them. So each end always reads its connection, a reader
//! that stalls holds up its own stream and not the connection, and a connection whose bytes are not taken has lost its peer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use contract::direct::WINDOW;
use tokio::sync::Notify;

/// How much the user reads until the peer is told of the room, in bytes.
const GRANT: usize = WINDOW / 4;

/// The credit of both directions of one stream.
#[derive(Debug)]
pub(crate) struct Credit {
    /// What may be sent.
    sendable: AtomicUsize,
    /// What may still come.
    room: AtomicUsize,
    /// What the user has read since the peer was told last.
    read: AtomicUsize,
    no_more: AtomicBool,
    given: Notify,
    due: Notify,
}

impl Default for Credit {
    fn default() -> Self {
        Self {
            sendable: AtomicUsize::new(WINDOW),
            room: AtomicUsize::new(WINDOW),
            read: AtomicUsize::new(0),
            no_more: AtomicBool::new(false),
            given: Notify::new(),
            due: Notify::new(),
        }
    }
}

impl Credit {
    /// The user has read so many bytes.
    pub(crate) fn read(&self, bytes: usize) {
        if self.read.fetch_add(bytes, Ordering::SeqCst) + bytes >= GRANT {
            self.due.notify_one();
        }
    }

    /// Waits until the peer is to be told of room, and says of how much. May be dropped without losing any.
    pub(super) async fn due(&self) -> u32 {
        while self.read.load(Ordering::SeqCst) < GRANT {
            self.due.notified().await;
        }
        let bytes = self.read.swap(0, Ordering::SeqCst);
        self.room.fetch_add(bytes, Ordering::SeqCst);
        // Never more than the window, as no more was let in.
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    /// Whether that many bytes of the peer were within its credit, which is less by them now.
    pub(super) fn admit(&self, bytes: usize) -> bool {
        let less = |room: usize| room.checked_sub(bytes);
        self.room.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
    }

    /// The peer has room for so many more. Whether it can have: more than a window it cannot.
    pub(super) fn give(&self, bytes: u32) -> bool {
        let more = |now: usize| now.checked_add(usize::try_from(bytes).ok()?).filter(|sum| *sum <= WINDOW);
        let given = self.sendable.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).is_ok();
        self.given.notify_one();
        given
    }

    /// The peer gives no more, as it has gone.
    pub(super) fn end(&self) {
        self.no_more.store(true, Ordering::SeqCst);
        self.given.notify_one();
    }

    /// How much may be sent now.
    pub(super) fn sendable(&self) -> usize {
        self.sendable.load(Ordering::SeqCst)
    }

    /// So much is sent.
    pub(super) fn spend(&self, bytes: usize) {
        self.sendable.fetch_sub(bytes, Ordering::SeqCst);
    }

    /// Waits until something may be sent; false when the peer gives no more.
    pub(super) async fn given(&self) -> bool {
        while self.sendable() == 0 {
            if self.no_more.load(Ordering::SeqCst) {
                return false;
            }
            self.given.notified().await;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_sends_or_is_sent_more_than_there_is_room_for() {
        let credit = Credit::default();
        assert!(credit.admit(WINDOW));
        assert!(!credit.admit(1), "the peer has no credit left");
        credit.read(GRANT + 1);
        assert_eq!(credit.due().await as usize, GRANT + 1);
        assert!(credit.admit(GRANT + 1) && !credit.admit(1));
        assert!(!credit.give(1), "nobody has more room than a window");
        credit.spend(WINDOW);
        assert!(credit.give(5) && credit.given().await);
        credit.spend(5);
        credit.end();
        assert!(!credit.given().await);
    }
}

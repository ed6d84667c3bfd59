//! What a client has sent on one channel and nobody has taken yet.
//!
//! The ssh library gives a channel new window as bytes arrive, whether or not somebody reads them, and would stop
//! the whole connection for one slow reader (and with it the window the client gives us: a deadlock for `ssh vm cat`).
//! So bytes are kept here, the handler never waits for a reader, and a connection with too much in here hands
//! out windows of next to nothing until its readers have caught up ([`Pressure`]).

use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicUsize, Ordering},
};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

/// A channel's window, in bytes.
pub const WINDOW: u32 = 1024 * 1024;
/// How much a connection may have waiting before it hands out no more, in bytes. What was handed out before still comes.
const WAITING_MAX: usize = 1024 * 1024;
/// A window that is next to nothing: the library asks for a new one when it is used up.
const TRICKLE: u32 = 2;
/// The most bytes taken at once.
const TAKE_MAX: usize = 64 * 1024;

/// How much one connection's channels have waiting, together.
#[derive(Clone, Debug, Default)]
pub struct Pressure(Arc<AtomicUsize>);

impl Pressure {
    /// The window to hand out now.
    pub fn window(&self) -> u32 {
        if self.is_high() { TRICKLE } else { WINDOW }
    }

    /// Whether readers must catch up.
    pub fn is_high(&self) -> bool {
        self.0.load(Ordering::Relaxed) > WAITING_MAX
    }
}

/// One channel's bytes. Clones are the same channel.
#[derive(Clone, Debug)]
pub struct Inbound(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Woken for its one reader.
    arrived: Notify,
    /// Woken for whoever waits for the end.
    ended: Notify,
    pressure: Pressure,
}

#[derive(Debug, Default)]
struct State {
    bytes: BytesMut,
    eof: bool,
    closed: bool,
}

impl Inbound {
    /// An empty one.
    pub fn new(pressure: Pressure) -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), arrived: Notify::new(), ended: Notify::new(), pressure }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The client sent bytes.
    pub fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if !state.closed && !state.eof {
            state.bytes.extend_from_slice(bytes);
            self.0.pressure.0.fetch_add(bytes.len(), Ordering::Relaxed);
            self.0.arrived.notify_one();
        }
    }

    /// The client sends no more.
    pub fn end(&self) {
        self.lock().eof = true;
        self.0.arrived.notify_one();
    }

    /// The channel or its connection has gone.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let dropped = std::mem::take(&mut state.bytes).len();
        self.0.pressure.0.fetch_sub(dropped, Ordering::Relaxed);
        self.0.arrived.notify_one();
        self.0.ended.notify_waiters();
    }

    /// The next bytes; nothing at the end of file or when the channel has gone. For one reader.
    pub async fn next(&self) -> Option<Bytes> {
        loop {
            {
                let mut state = self.lock();
                if !state.bytes.is_empty() {
                    let length = state.bytes.len().min(TAKE_MAX);
                    self.0.pressure.0.fetch_sub(length, Ordering::Relaxed);
                    return Some(state.bytes.split_to(length).freeze());
                }
                if state.eof || state.closed {
                    return None;
                }
            }
            // A notification between the lock and here is kept for us.
            self.0.arrived.notified().await;
        }
    }

    /// Returns when the channel or its connection has gone.
    pub async fn closed(&self) {
        loop {
            let ended = self.0.ended.notified();
            tokio::pin!(ended);
            // Enlisted before looking, so that a close in between is not missed.
            ended.as_mut().enable();
            if self.lock().closed {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let left = self.state.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).bytes.len();
        self.pressure.0.fetch_sub(left, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_come_out_in_order_and_then_the_end() {
        let inbound = Inbound::new(Pressure::default());
        inbound.push(b"one ");
        inbound.push(b"two");
        inbound.end();
        inbound.push(b"after the end");
        assert_eq!(inbound.next().await.as_deref(), Some(&b"one two"[..]));
        assert_eq!(inbound.next().await, None);
    }

    #[tokio::test]
    async fn pressure_rises_with_what_waits_and_falls_with_what_is_read_or_dropped() {
        let pressure = Pressure::default();
        let (slow, gone) = (Inbound::new(pressure.clone()), Inbound::new(pressure.clone()));
        slow.push(&vec![0; WAITING_MAX]);
        assert_eq!(pressure.window(), WINDOW);
        gone.push(b"x");
        assert_eq!(pressure.window(), TRICKLE);
        drop(gone);
        assert_eq!(pressure.window(), WINDOW);
        while slow.lock().bytes.len() > TAKE_MAX {
            slow.next().await;
        }
        slow.close();
        slow.closed().await;
        assert_eq!(pressure.0.load(Ordering::Relaxed), 0);
    }
}

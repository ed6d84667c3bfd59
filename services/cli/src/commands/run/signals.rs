//! Signals that mean the end of a run, while no command runs that they are passed on to.

use std::future::poll_fn;

use contract::ApiError;
use futures::FutureExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Stopped;
use crate::failure::Failure;

/// Ctrl-C, a terminal that is closed, and a wish to end.
pub struct Signals([Signal; 3]);

impl Signals {
    /// From now on none of them ends the process by itself.
    ///
    /// # Errors
    /// They cannot be listened to.
    pub fn listen() -> Result<Self, ApiError> {
        let listen =
            |kind| signal(kind).map_err(|error| ApiError::internal(format!("signals cannot be seen: {error}")));
        Ok(Self([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?]))
    }

    /// Does a step, unless one comes.
    pub async fn unless<T>(&mut self, step: impl Future<Output = Result<T, Failure>>) -> Result<T, Stopped> {
        tokio::select! {
            done = step => done.map_err(Stopped::Failed),
            () = self.next() => Err(Stopped::Interrupted),
        }
    }

    /// Those that came were for somebody else.
    pub fn forget(&mut self) {
        while self.next().now_or_never().is_some() {}
    }

    async fn next(&mut self) {
        poll_fn(|cx| {
            let came = self.0.iter_mut().any(|signal| signal.poll_recv(cx).is_ready());
            if came { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }
}

//! How the two ends of an upload find each other again: the sender rings, and the host that keeps what came tells where it goes on.

use std::time::Duration;

use async_nats::{Subject, Subscriber};
use contract::{ApiError, SessionId, host::Empty, subject::upload_place, upload::Place};
use futures::StreamExt;

use crate::{Bus, BusError};

/// How long a host may take to end the stream before and to sync what came: longer than a busy disk needs.
const ANSWER: Duration = Duration::from_secs(20);

/// Where a host hears of senders that come again.
#[derive(Debug)]
pub struct Desk {
    bus: Bus,
    rings: Subscriber,
}

/// A sender that came again.
#[derive(Debug)]
pub struct Ring {
    bus: Bus,
    reply: Subject,
}

impl Bus {
    /// Hears of senders from now on, until it is dropped.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn upload_desk(&self, session: SessionId) -> Result<Desk, BusError> {
        Ok(Desk { bus: self.clone(), rings: self.subscribe(upload_place(session)).await? })
    }

    /// Asks the host where an upload goes on.
    ///
    /// # Errors
    /// `unavailable` at once when no host awaits it; `deadline_exceeded` when no reply came.
    pub async fn upload_place(&self, session: SessionId) -> Result<Place, ApiError> {
        let absent = || ApiError::unavailable("no host awaits the upload");
        self.ask(upload_place(session), &Empty {}, ANSWER, None, absent).await
    }
}

impl Desk {
    /// The next sender; none when the connection is closed.
    pub async fn next(&mut self) -> Option<Ring> {
        loop {
            if let Some(reply) = self.rings.next().await?.reply {
                return Some(Ring { bus: self.bus.clone(), reply });
            }
        }
    }
}

impl Ring {
    /// Tells the sender where it goes on, best effort: it rings again.
    pub async fn answer(self, place: &Place) {
        let payload = match serde_json::to_vec(place) {
            Ok(payload) => payload,
            Err(error) => return tracing::error!(%error, "a place cannot be written"),
        };
        if let Err(error) = self.bus.client.publish(self.reply, payload.into()).await {
            tracing::debug!(%error, "a sender was not answered");
        }
    }
}

//! Reading the lab's events: what JetStream still has, and what comes from now on.

use async_nats::jetstream::consumer::{DeliverPolicy, pull::OrderedConfig};
use contract::{ApiError, ErrorCode, event::Event, subject};
use futures::{Stream, StreamExt};
use time::OffsetDateTime;

use crate::Bus;

/// An event with where it stood.
#[derive(Clone, Debug)]
pub struct Heard {
    /// `warren.event.<area>.<id>.<what>`.
    pub subject: String,
    /// The event.
    pub event: Event,
    /// How many more are there already.
    pub pending: u64,
}

fn unreadable(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, format!("events cannot be read: {error}"))
        .hint("the stream is made by the services when they start; is NATS running with JetStream?")
}

impl Bus {
    /// Events that match `filter` (a subject with wildcards) since then, or from now on, without end; and how many of them are
    /// there already. Lost messages of a reconnect are read again.
    ///
    /// # Errors
    /// `unavailable`: there is no such stream, or JetStream does not answer.
    pub async fn events(
        &self,
        filter: String,
        since: Option<OffsetDateTime>,
    ) -> Result<(u64, impl Stream<Item = Result<Heard, ApiError>> + Unpin), ApiError> {
        let stream = self.jetstream().get_stream(subject::EVENT_STREAM).await.map_err(unreadable)?;
        let deliver_policy = match since {
            None => DeliverPolicy::New,
            Some(start_time) => DeliverPolicy::ByStartTime { start_time },
        };
        let config = OrderedConfig { filter_subject: filter, deliver_policy, ..OrderedConfig::default() };
        let consumer = stream.create_consumer(config).await.map_err(unreadable)?;
        let there = consumer.cached_info().num_pending;
        let messages = consumer.messages().await.map_err(unreadable)?;
        let heard = messages.map(|message| {
            let message = message.map_err(unreadable)?;
            let pending = message.info().map_err(unreadable)?.pending;
            let event = serde_json::from_slice(&message.payload).map_err(unreadable)?;
            Ok(Heard { subject: message.subject.to_string(), event, pending })
        });
        Ok((there, heard.boxed()))
    }
}

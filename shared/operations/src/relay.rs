//! The relay: publishes the outbox to JetStream, in order, each event at least once and deduplicated by its id.

use std::time::Duration;

use async_nats::{HeaderMap, jetstream};
use bus::Bus;
use contract::{
    event::Event,
    subject::{EVENT_STREAM, EVENT_WILDCARD, TRACEPARENT_HEADER, WAKE_RELAY},
};
use futures::StreamExt;
use store::{Store, StoreError};
use tokio::time::timeout;

/// How many events go out together.
const BATCH: i64 = 256;
/// How long the relay's lease lasts: as long events wait at the most when its holder dies.
const LEASE: Duration = Duration::from_secs(5);
/// How often the outbox is looked at when no wake-up comes.
const POLL: Duration = Duration::from_millis(500);
/// How long JetStream may take to acknowledge.
const ACK: Duration = Duration::from_secs(5);
/// What the stream keeps: a replay cache, not the truth.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
const MAX_BYTES: i64 = 256 * 1024 * 1024;
/// Longer than a relay may be away between publishing an event and deleting its row.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("JetStream is not available")]
    Stream(#[source] async_nats::Error),
    #[error("an event cannot be written")]
    Event(#[from] serde_json::Error),
}

fn stream_error(error: impl Into<async_nats::Error>) -> RelayError {
    RelayError::Stream(error.into())
}

/// Relays for ever.
pub(crate) async fn run(store: Store, bus: Bus, worker: String) {
    let mut complained = false;
    let mut wake = None;
    loop {
        if wake.is_none() {
            wake = bus.subscribe(WAKE_RELAY.to_owned()).await.ok();
        }
        match round(&store, &bus, &worker).await {
            Ok(true) => {
                complained = false;
                continue;
            }
            Ok(false) => complained = false,
            Err(error) => {
                // Said once; events wait in the outbox meanwhile.
                if !std::mem::replace(&mut complained, true) {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "events wait in the outbox");
                }
                tokio::time::sleep(POLL).await;
            }
        }
        let nudged = async {
            match &mut wake {
                Some(messages) => messages.next().await.is_some(),
                None => std::future::pending().await,
            }
        };
        if timeout(POLL, nudged).await == Ok(false) {
            wake = None;
        }
    }
}

/// Publishes one batch if this worker is the relay; whether there may be more.
async fn round(store: &Store, bus: &Bus, worker: &str) -> Result<bool, RelayError> {
    let Some(batch) = take(store, worker).await? else { return Ok(false) };
    if batch.is_empty() {
        return Ok(false);
    }
    let context = bus.jetstream();
    ensure_stream(&context).await?;
    let mut acknowledgements = Vec::with_capacity(batch.len());
    for (_, subject, event, traceparent) in &batch {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", event.id.to_string());
        if let Some(traceparent) = traceparent {
            headers.insert(TRACEPARENT_HEADER, traceparent.as_str());
        }
        let payload = serde_json::to_vec(event)?.into();
        acknowledgements
            .push(context.publish_with_headers(subject.clone(), headers, payload).await.map_err(stream_error)?);
    }
    for acknowledgement in acknowledgements {
        timeout(ACK, acknowledgement).await.map_err(stream_error)?.map_err(stream_error)?;
    }
    let sequence: Vec<i64> = batch.iter().map(|(seq, ..)| *seq).collect();
    let client = store.client().await?;
    client
        .execute("delete from operations.outbox where seq = any($1)", &[&sequence])
        .await
        .map_err(StoreError::from)?;
    Ok(batch.len() == usize::try_from(BATCH).unwrap_or(usize::MAX))
}

type Row = (i64, String, Event, Option<String>);

/// The oldest events, if this worker is the relay or the relay is silent.
async fn take(store: &Store, worker: &str) -> Result<Option<Vec<Row>>, StoreError> {
    let client = store.client().await?;
    let lease = client
        .prepare_cached(
            "update operations.relay set holder = $1, until = now() + $2 * interval '1 second' \
             where holder = $1 or until < now()",
        )
        .await?;
    // A look without a write first: most rounds find nothing to do.
    let any = client.prepare_cached("select exists (select 1 from operations.outbox)").await?;
    if !client.query_one(&any, &[]).await?.get::<_, bool>(0) {
        return Ok(None);
    }
    if client.execute(&lease, &[&worker, &LEASE.as_secs_f64()]).await? == 0 {
        return Ok(None);
    }
    let query = "select seq, id, subject, data, traceparent, at from operations.outbox order by seq limit $1";
    let statement = client.prepare_cached(query).await?;
    let rows = client.query(&statement, &[&BATCH]).await?;
    let rows = rows.into_iter().map(|row| {
        let event = Event { id: row.get("id"), at: row.get("at"), data: row.get("data") };
        (row.get("seq"), row.get("subject"), event, row.get("traceparent"))
    });
    Ok(Some(rows.collect()))
}

async fn ensure_stream(context: &jetstream::Context) -> Result<(), RelayError> {
    let config = jetstream::stream::Config {
        name: EVENT_STREAM.to_owned(),
        subjects: vec![EVENT_WILDCARD.to_owned()],
        max_age: MAX_AGE,
        max_bytes: MAX_BYTES,
        duplicate_window: DUPLICATE_WINDOW,
        ..Default::default()
    };
    context.get_or_create_stream(config).await.map(drop).map_err(stream_error)
}

//! The connection to NATS.

use std::{path::PathBuf, time::Duration};

use async_nats::{ConnectOptions, Event, Request, Subscriber, client::RequestErrorKind, jetstream};
use contract::ApiError;

/// How to reach NATS.
#[derive(Clone, Debug)]
pub struct BusConfig {
    /// `nats://host:port`, several separated by commas.
    pub url: String,
    /// The connection's name, shown by `nats server report connections`.
    pub name: String,
    /// A credentials file (JWT and nkey), where the server asks for one.
    pub credentials: Option<PathBuf>,
    /// How long to try for the first connection.
    pub patience: Duration,
}

impl BusConfig {
    /// Without credentials, trying for 30 seconds: services may start before NATS does.
    pub fn new(url: impl Into<String>, name: impl Into<String>) -> Self {
        Self { url: url.into(), name: name.into(), credentials: None, patience: Duration::from_secs(30) }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The credentials file cannot be used.
    #[error("the NATS credentials {path} cannot be read")]
    Credentials {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No server answered in time.
    #[error("NATS at {url} cannot be reached")]
    Connect {
        /// Where.
        url: String,
        /// Why.
        source: async_nats::ConnectError,
    },
    /// A subscription or publication failed: the connection is closed.
    #[error("the NATS connection is closed")]
    Closed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A service or endpoint could not be registered.
    #[error("the service {name} cannot be registered")]
    Register {
        /// Which.
        name: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<BusError> for ApiError {
    fn from(error: BusError) -> Self {
        ApiError::unavailable(error.to_string()).hint("is nats-server running, and is WARREN_NATS_URL right?")
    }
}

/// A connection to NATS; clones share it.
#[derive(Clone, Debug)]
pub struct Bus {
    pub(crate) client: async_nats::Client,
}

/// First pause between attempts to connect; doubles up to [`RECONNECT_MAX`].
const RECONNECT_MIN: Duration = Duration::from_millis(50);
/// Longest pause between attempts to reconnect: a restarted server is found within a second.
const RECONNECT_MAX: Duration = Duration::from_secs(1);

/// How long the server may take to answer a flush: longer than its restart.
const FLUSH: Duration = Duration::from_secs(10);
/// Nobody listens here.
const FLUSH_SUBJECT: &str = "warren.flush";

impl Bus {
    /// Connects; afterwards the client reconnects by itself for ever.
    ///
    /// # Errors
    /// No server answered within [`BusConfig::patience`], or the credentials cannot be read.
    pub async fn connect(config: &BusConfig) -> Result<Self, BusError> {
        let give_up = tokio::time::Instant::now() + config.patience;
        let mut pause = RECONNECT_MIN;
        loop {
            let attempt = options(config).await?.connect(servers(&config.url)).await;
            match attempt {
                Ok(client) => return Ok(Self { client }),
                Err(source) if tokio::time::Instant::now() + pause >= give_up => {
                    return Err(BusError::Connect { url: config.url.clone(), source });
                }
                Err(error) => tracing::debug!(%error, "NATS is not there yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    /// Publishes an empty message, best effort: a wake-up whose loss costs a poll interval.
    pub async fn notify(&self, subject: String) {
        if let Err(error) = self.client.publish(subject, bytes::Bytes::new()).await {
            tracing::debug!(%error, "a wake-up was not sent");
        }
    }

    /// Subscribes, and returns once the server knows.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn subscribe(&self, subject: String) -> Result<Subscriber, BusError> {
        let subscriber = self.client.subscribe(subject).await.map_err(|error| BusError::Closed(error.into()))?;
        self.flush().await?;
        Ok(subscriber)
    }

    /// Waits until the server has taken everything sent so far: subscriptions are known, messages are on
    /// their way. The client's own flush ends at the socket, so this asks a question nobody answers: the server
    /// reads in order, and its "no responders" comes after all that went before.
    ///
    /// # Errors
    /// The connection is closed, or the server does not answer within [`FLUSH`].
    pub async fn flush(&self) -> Result<(), BusError> {
        let question = Request::new().timeout(Some(FLUSH));
        match self.client.send_request(FLUSH_SUBJECT, question).await {
            Err(error) if error.kind() != RequestErrorKind::NoResponders => Err(BusError::Closed(error.into())),
            _ => Ok(()),
        }
    }

    /// JetStream on this connection.
    pub fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client.clone())
    }

    /// The raw client, for what only tests and tools need.
    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }
}

async fn options(config: &BusConfig) -> Result<ConnectOptions, BusError> {
    let options = ConnectOptions::new()
        .name(&config.name)
        .connection_timeout(Duration::from_secs(5))
        .ping_interval(Duration::from_secs(10))
        .reconnect_delay_callback(|attempts| RECONNECT_MIN.saturating_mul(1 << attempts.min(10)).min(RECONNECT_MAX))
        .event_callback(|event| async move {
            match event {
                Event::Disconnected => tracing::warn!("NATS is gone; reconnecting"),
                Event::Connected => tracing::info!("NATS is connected"),
                Event::SlowConsumer(id) => tracing::warn!(subscription.id = id, "messages were dropped: slow consumer"),
                other => tracing::debug!(event = %other, "NATS"),
            }
        });
    match &config.credentials {
        None => Ok(options),
        Some(path) => {
            let fail = |source| BusError::Credentials { path: path.clone(), source };
            let text = tokio::fs::read_to_string(path).await.map_err(fail)?;
            options.credentials(&text).map_err(fail)
        }
    }
}

fn servers(url: &str) -> Vec<String> {
    url.split(',').map(|server| server.trim().to_owned()).collect()
}

//! The client: calls verbs, and asks again where a reply was lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bus::{Bus, BusConfig, ByteStream, CallOptions};
use contract::{
    ApiError, ErrorCode, SessionId, Verb,
    workspace::{self, SessionKind},
};
use uuid::Uuid;

use crate::{args::Global, failure::Failure, locate};

/// How long to try to reach NATS: longer than its restart, shorter than a person's patience.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a mutating request whose outcome is unknown is asked again.
const REPEATS: u32 = 3;
/// The pause before the first repeat; it doubles.
const PAUSE: Duration = Duration::from_millis(250);

/// A connection to a lab.
#[derive(Clone, Debug)]
pub struct Client {
    bus: Bus,
    /// Whether hosts are tried directly: until that fails once, so that a host out of reach costs its time only once.
    direct: Arc<AtomicBool>,
}

impl Client {
    /// Connects to the lab the user means.
    ///
    /// # Errors
    /// No lab is known, or its NATS does not answer.
    pub async fn connect(global: &Global) -> Result<Self, Failure> {
        let url = locate::nats_url(global)?;
        let config = BusConfig {
            credentials: global.nats_credentials.clone(),
            patience: PATIENCE,
            ..BusConfig::new(url.clone(), "warren")
        };
        let bus = Bus::connect(&config).await.map_err(|error| {
            ApiError::from(error).hint("is the lab running (`warren dev status`), and is --nats right?")
        })?;
        Ok(Self { bus, direct: Arc::new(AtomicBool::new(!global.no_direct)) })
    }

    /// The connection itself.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Asks for something that changes nothing.
    ///
    /// # Errors
    /// What the service answered.
    pub async fn ask<V: Verb>(&self, request: &V::Request) -> Result<V::Reply, ApiError> {
        self.bus.call::<V>(request).await
    }

    /// Asks for a change, under a fresh request id; where the reply is lost it asks again under the same id, which
    /// gives the first one's effect.
    ///
    /// # Errors
    /// What the service answered, or that nobody answered for the whole time.
    pub async fn change<V: Verb>(&self, request: &V::Request, timeout: Duration) -> Result<V::Reply, ApiError> {
        debug_assert!(V::MUTATES);
        let options = CallOptions { timeout: Some(timeout), request_key: Some(Uuid::now_v7().to_string()) };
        let mut pause = PAUSE;
        for _ in 0..REPEATS {
            match self.bus.call_with::<V>(request, options.clone()).await {
                Err(error) if matches!(error.code, ErrorCode::DeadlineExceeded | ErrorCode::Unavailable) => {
                    tracing::debug!(%error, "asked again");
                }
                ended => return ended,
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.bus.call_with::<V>(request, options).await
    }

    /// Opens a byte stream to a VM: straight to its host where that offers it and is reached, else over the bus.
    ///
    /// # Errors
    /// What the service answered.
    pub async fn open(&self, vm: &str, kind: SessionKind) -> Result<ByteStream, ApiError> {
        let session = SessionId::new();
        let listening = ByteStream::listen(&self.bus, session).await?;
        let direct = self.direct.load(Ordering::Relaxed);
        let mut request = workspace::OpenRequest { vm: vm.to_owned(), session, kind, direct };
        let mut opened = self.ask::<workspace::Open>(&request).await;
        if direct && opened.as_ref().is_err_and(|error| error.refuses_field("direct")) {
            // A workspace-service of before direct streams.
            request.direct = false;
            opened = self.ask::<workspace::Open>(&request).await;
        }
        let Some(offer) = opened?.direct else { return Ok(listening.begin()) };
        match bus::direct::connect(&offer, session).await {
            Ok(stream) => Ok(stream),
            Err(error) => {
                tracing::debug!(%error, "the host is not reached directly; the bus carries the session");
                self.direct.store(false, Ordering::Relaxed);
                Ok(listening.begin())
            }
        }
    }
}

//! Calling verbs and commanding agents.

use std::time::{Duration, Instant};

use async_nats::{
    HeaderMap, Request,
    client::{RequestError, RequestErrorKind},
};
use contract::{
    AgentVerb, ApiError, HostId, Verb,
    agent::HostAlive,
    deadline,
    error::ErrorBody,
    host::Empty,
    subject::{ERROR_CODE_HEADER, REQUEST_ID_HEADER, TRACEPARENT_HEADER},
};
use runtime::telemetry;
use serde::{Serialize, de::DeserializeOwned};
use tracing::Instrument;

use crate::Bus;

/// What may be said about one call.
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    /// How long to wait for the reply; the verb's own time when left out.
    pub timeout: Option<Duration>,
    /// The idempotency key of a mutating request.
    pub request_key: Option<String>,
}

impl Bus {
    /// Calls a verb and waits for its reply for the verb's own time.
    ///
    /// # Errors
    /// What the service answered; `unavailable` at once when no service serves it; `deadline_exceeded` when
    /// no reply came, so that the outcome is unknown.
    pub async fn call<V: Verb>(&self, request: &V::Request) -> Result<V::Reply, ApiError> {
        self.call_with::<V>(request, CallOptions::default()).await
    }

    /// Calls a verb with options.
    ///
    /// # Errors
    /// As [`Bus::call`].
    pub async fn call_with<V: Verb>(&self, request: &V::Request, options: CallOptions) -> Result<V::Reply, ApiError> {
        let timeout = options.timeout.unwrap_or(V::TIMEOUT);
        let absent = || {
            ApiError::unavailable(format!("no service answers {}", V::SUBJECT))
                .hint("is the lab running? `warren dev status` tells")
        };
        self.ask(V::SUBJECT.to_owned(), request, timeout, options.request_key, absent).await
    }

    /// Sends a command to one host-agent.
    ///
    /// # Errors
    /// What the agent answered; `unavailable` at once when it is not connected; `deadline_exceeded` when no
    /// reply came, or none will because the agent was restarted with the command in hand, so that the outcome is unknown and
    /// the command must be repeated.
    pub async fn command<A: AgentVerb>(&self, host: &HostId, request: &A::Request) -> Result<A::Reply, ApiError> {
        let sent = Instant::now();
        tokio::select! {
            reply = self.command_once::<A>(host, request) => reply,
            () = self.restarted_since(host, sent) => {
                let message = format!("the host-agent of {host} was restarted with {} in hand", A::NAME);
                Err(ApiError::deadline_exceeded(message).hint("the outcome is unknown: ask again"))
            }
        }
    }

    async fn command_once<A: AgentVerb>(&self, host: &HostId, request: &A::Request) -> Result<A::Reply, ApiError> {
        let absent = || ApiError::unavailable(format!("the host-agent of {host} is not connected"));
        self.ask(A::subject(host), request, A::TIMEOUT, None, absent).await
    }

    /// Ends when a host's agent is another process than the one that was there at `sent`. Durations are compared, so that no two
    /// clocks are. An agent of before this was known, or that is away, leaves it open.
    async fn restarted_since(&self, host: &HostId, sent: Instant) {
        loop {
            tokio::time::sleep(deadline::ALIVE).await;
            let asked = sent.elapsed();
            if let Ok(alive) = self.command_once::<HostAlive>(host, &Empty {}).await
                && Duration::from_millis(alive.serving_ms) < asked
            {
                return;
            }
        }
    }

    pub(crate) async fn ask<Q: Serialize, R: DeserializeOwned>(
        &self,
        subject: String,
        request: &Q,
        timeout: Duration,
        request_key: Option<String>,
        absent: impl FnOnce() -> ApiError,
    ) -> Result<R, ApiError> {
        let span = tracing::info_span!("call", otel.name = %subject, otel.kind = "client");
        async {
            let payload = serde_json::to_vec(request)
                .map_err(|error| ApiError::internal(format!("the request cannot be written: {error}")))?;
            let headers = headers(request_key)?;
            let request = Request::new().payload(payload.into()).headers(headers).timeout(Some(timeout));
            let reply = self.client.send_request(subject.clone(), request).await;
            let reply = reply.map_err(|error| transport_error(&error, &subject, timeout, absent))?;
            let failed = reply.headers.as_ref().is_some_and(|headers| headers.get(ERROR_CODE_HEADER).is_some());
            if failed {
                return Err(match serde_json::from_slice::<ErrorBody>(&reply.payload) {
                    Ok(body) => body.error,
                    Err(_) => ApiError::internal(format!("{subject} failed without saying why")),
                });
            }
            serde_json::from_slice(&reply.payload)
                .map_err(|error| ApiError::internal(format!("the reply of {subject} cannot be read: {error}")))
        }
        .instrument(span)
        .await
    }
}

fn headers(request_key: Option<String>) -> Result<HeaderMap, ApiError> {
    let mut headers = HeaderMap::new();
    if let Some(traceparent) = telemetry::current_traceparent() {
        headers.insert(TRACEPARENT_HEADER, traceparent);
    }
    if let Some(key) = request_key {
        if key.is_empty() || key.len() > 128 || key.contains(|c: char| c.is_control()) {
            return Err(ApiError::invalid_argument("a request id has 1 to 128 characters and no control characters"));
        }
        headers.insert(REQUEST_ID_HEADER, key);
    }
    Ok(headers)
}

fn transport_error(
    error: &RequestError,
    subject: &str,
    timeout: Duration,
    absent: impl FnOnce() -> ApiError,
) -> ApiError {
    match error.kind() {
        RequestErrorKind::NoResponders => absent(),
        RequestErrorKind::TimedOut => {
            ApiError::deadline_exceeded(format!("{subject} did not answer within {} ms", timeout.as_millis()))
                .hint("the outcome is unknown: ask again with the same request id")
        }
        RequestErrorKind::MaxPayloadExceeded => {
            ApiError::invalid_argument(format!("the request to {subject} is larger than a NATS message may be"))
        }
        RequestErrorKind::InvalidSubject | RequestErrorKind::Other => {
            ApiError::unavailable(format!("{subject} cannot be asked: {error}"))
        }
    }
}

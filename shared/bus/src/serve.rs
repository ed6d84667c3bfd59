//! Serving verbs through the NATS service API (ADR-32).

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_nats::{
    HeaderMap,
    service::{self, ServiceExt},
};
use bytes::Bytes;
use contract::{
    AgentVerb, ApiError, HostId, Verb, deadline,
    error::ErrorBody,
    subject::{ERROR_CODE_HEADER, ERROR_HEADER, REQUEST_ID_HEADER, TRACEPARENT_HEADER},
    verb::Payload,
};
use futures::StreamExt;
use runtime::telemetry;
use schemars::schema_for;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use crate::{Bus, BusError};

/// How many requests one service works on at once. Waiting requests cost a task each; more than this and the newest wait
/// in the subscription.
const IN_FLIGHT_MAX: usize = 4096;

/// The queue group of verbs that several services serve alike.
const SHARED_QUEUE: &str = "warren-shared";

/// How long a handler may take: a waiting verb as long as its request may ask for.
fn limit<V: Verb>() -> Duration {
    if V::TIMEOUT <= deadline::QUICK {
        V::TIMEOUT
    } else {
        Duration::from_millis(deadline::WAIT_MAX_MS) + deadline::WAIT_SLACK
    }
}

/// What a handler knows of a request beside its body.
#[derive(Clone, Debug, Default)]
pub struct RequestContext {
    /// The idempotency key (`Warren-Request-Id` or `Nats-Msg-Id`).
    pub request_key: Option<String>,
    /// The handler's own span as `traceparent`, to be stored with an operation.
    pub traceparent: Option<String>,
    /// SHA-256 of the parsed request, hexadecimal: tells a replay from another request with the same key.
    pub body_digest: String,
}

/// A service registered with NATS; its endpoints are served until [`Service::stop`].
pub struct Service {
    bus: Bus,
    name: String,
    service: service::Service,
    in_flight: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Bus {
    /// Registers a service. Its replicas share the work: they are one queue group by name.
    ///
    /// # Errors
    /// The connection is closed, or the name or version is not what ADR-32 allows.
    pub async fn service(&self, name: &str, version: &str, description: &str) -> Result<Service, BusError> {
        let service = self
            .client
            .service_builder()
            .description(description)
            .queue_group(name)
            .start(name, version)
            .await
            .map_err(|source| BusError::Register { name: name.to_owned(), source })?;
        Ok(Service {
            bus: self.clone(),
            name: name.to_owned(),
            service,
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            tasks: TaskTracker::new(),
        })
    }
}

/// What is the same for every request of one endpoint.
struct Endpoint<H> {
    bus: Bus,
    subject: String,
    limit: Duration,
    handler: H,
}

impl Service {
    /// Serves a verb.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn serve<V, F>(
        &self,
        handler: impl Fn(RequestContext, V::Request) -> F + Send + Sync + 'static,
    ) -> Result<(), BusError>
    where
        V: Verb,
        F: Future<Output = Result<V::Reply, ApiError>> + Send + 'static,
    {
        self.endpoint(V::SUBJECT.to_owned(), V::SUMMARY, &self.name, limit::<V>(), handler).await
    }

    /// Serves a verb that services of different names can answer alike: exactly one of them does.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn serve_shared<V, F>(
        &self,
        handler: impl Fn(RequestContext, V::Request) -> F + Send + Sync + 'static,
    ) -> Result<(), BusError>
    where
        V: Verb,
        F: Future<Output = Result<V::Reply, ApiError>> + Send + 'static,
    {
        self.endpoint(V::SUBJECT.to_owned(), V::SUMMARY, SHARED_QUEUE, limit::<V>(), handler).await
    }

    /// Serves a command to the host-agent of `host`.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn serve_agent<A, F>(
        &self,
        host: &HostId,
        handler: impl Fn(RequestContext, A::Request) -> F + Send + Sync + 'static,
    ) -> Result<(), BusError>
    where
        A: AgentVerb,
        F: Future<Output = Result<A::Reply, ApiError>> + Send + 'static,
    {
        self.endpoint(A::subject(host), A::SUMMARY, &self.name, A::TIMEOUT, handler).await
    }

    /// Waits until the server knows all endpoints: only then may the process say it is ready.
    ///
    /// # Errors
    /// The connection is closed.
    pub async fn ready(&self) -> Result<(), BusError> {
        self.bus.flush().await
    }

    /// Takes no more requests and waits up to `grace` for those under way.
    pub async fn stop(self, grace: Duration) {
        if let Err(error) = self.service.stop().await {
            tracing::debug!(%error, "the service was stopped already");
        }
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_err() {
            tracing::warn!(requests = self.tasks.len(), "requests were still under way at shutdown");
        }
        if let Err(error) = self.bus.flush().await {
            tracing::debug!(%error, "the last replies may be lost");
        }
    }

    async fn endpoint<Q, R, F, H>(
        &self,
        subject: String,
        summary: &str,
        queue: &str,
        limit: Duration,
        handler: H,
    ) -> Result<(), BusError>
    where
        Q: Payload,
        R: Payload,
        F: Future<Output = Result<R, ApiError>> + Send + 'static,
        H: Fn(RequestContext, Q) -> F + Send + Sync + 'static,
    {
        let metadata = HashMap::from([
            ("description".to_owned(), summary.trim().to_owned()),
            ("schema.request".to_owned(), schema_for!(Q).as_value().to_string()),
            ("schema.response".to_owned(), schema_for!(R).as_value().to_string()),
        ]);
        let mut requests = self
            .service
            .endpoint_builder()
            .name(subject.replace('.', "-"))
            .metadata(metadata)
            .queue_group(queue)
            .add(subject.clone())
            .await
            .map_err(|source| BusError::Register { name: subject.clone(), source })?;
        let endpoint = Arc::new(Endpoint { bus: self.bus.clone(), subject, limit, handler });
        let (in_flight, tasks) = (self.in_flight.clone(), self.tasks.clone());
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                let Ok(permit) = in_flight.clone().acquire_owned().await else { return };
                let endpoint = endpoint.clone();
                tasks.spawn(async move {
                    endpoint.answer(request).await;
                    drop(permit);
                });
            }
        });
        Ok(())
    }
}

impl<H> Endpoint<H> {
    async fn answer<Q, R, F>(self: Arc<Self>, request: service::Request)
    where
        Q: Payload,
        R: Payload,
        F: Future<Output = Result<R, ApiError>> + Send + 'static,
        H: Fn(RequestContext, Q) -> F + Send + Sync + 'static,
    {
        let span = tracing::info_span!("serve", otel.name = %self.subject, otel.kind = "server", otel.status_code = tracing::field::Empty);
        telemetry::continue_trace(&span, header(&request, TRACEPARENT_HEADER));
        let outcome = self.handle(&request, &span).instrument(span.clone()).await;
        let reply = outcome.and_then(|reply| self.fitting(&reply));
        match reply {
            Ok(payload) => self.reply(&request, payload).await,
            Err(error) => {
                span.record("otel.status_code", "ERROR");
                self.refuse(request, error, &span).await;
            }
        }
    }

    async fn handle<Q, R, F>(&self, request: &service::Request, span: &Span) -> Result<R, ApiError>
    where
        Q: Payload,
        F: Future<Output = Result<R, ApiError>> + Send + 'static,
        R: Payload,
        H: Fn(RequestContext, Q) -> F,
    {
        let body: &[u8] = if request.message.payload.is_empty() { b"{}" } else { &request.message.payload };
        let parsed: Q = serde_json::from_slice(body).map_err(|error| {
            ApiError::invalid_argument(format!("the request to {} cannot be read: {error}", self.subject))
                .hint(format!("`nats micro info` shows the request schema of {}", self.subject))
        })?;
        let canonical = serde_json::to_vec(&parsed).map_err(|error| ApiError::internal(error.to_string()))?;
        let context = RequestContext {
            request_key: header(request, REQUEST_ID_HEADER).or(header(request, "Nats-Msg-Id")).map(str::to_owned),
            traceparent: telemetry::traceparent_of(span),
            body_digest: hex::encode(Sha256::digest(&canonical)),
        };
        // A task of its own, so that a panic becomes an answer instead of a silence.
        let work = tokio::spawn((self.handler)(context, parsed).instrument(span.clone()));
        let abort = work.abort_handle();
        match tokio::time::timeout(self.limit, work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(panic)) => {
                tracing::error!(subject = %self.subject, error = %panic, "a handler panicked");
                Err(ApiError::internal(format!("{} failed unexpectedly", self.subject)))
            }
            Err(_) => {
                abort.abort();
                Err(ApiError::deadline_exceeded(format!(
                    "{} took longer than {} s",
                    self.subject,
                    self.limit.as_secs()
                )))
            }
        }
    }

    /// The reply's bytes, if a NATS message can hold them.
    fn fitting<R: Payload>(&self, reply: &R) -> Result<Bytes, ApiError> {
        let payload = serde_json::to_vec(reply).map_err(|error| ApiError::internal(error.to_string()))?;
        let limit = self.bus.client.server_info().max_payload;
        if limit > 0 && payload.len() > limit {
            return Err(ApiError::resource_exhausted("the reply is larger than a NATS message may be")
                .hint("ask for fewer with `limit`"));
        }
        Ok(payload.into())
    }

    async fn reply(&self, request: &service::Request, payload: Bytes) {
        if request.message.reply.is_some()
            && let Err(error) = request.respond(Ok(payload)).await
        {
            tracing::warn!(subject = %self.subject, %error, "a reply was not sent");
        }
    }

    async fn refuse(&self, mut request: service::Request, mut error: ApiError, span: &Span) {
        error = error.fit();
        let trace_id = telemetry::traceparent_of(span).as_deref().and_then(telemetry::trace_id).map(str::to_owned);
        error.trace_id = error.trace_id.or(trace_id);
        if error.code == contract::ErrorCode::Internal {
            tracing::error!(parent: span, subject = %self.subject, error = %error.message, "a request failed");
        } else {
            tracing::debug!(parent: span, subject = %self.subject, error.code = %error.code, error = %error.message, "a request was refused");
        }
        // async-nats sends errors without a body, so the reply goes out by hand; answering into the void
        // afterwards only counts the error in the service's statistics.
        let status = service::error::Error { status: header_text(&error.message), code: error.code.number().into() };
        if let Some(reply) = request.message.reply.take() {
            let mut headers = HeaderMap::new();
            headers.insert(ERROR_CODE_HEADER, status.code.to_string());
            headers.insert(ERROR_HEADER, status.status.as_str());
            let body = serde_json::to_vec(&ErrorBody { error }).unwrap_or_default();
            if let Err(error) = self.bus.client.publish_with_headers(reply, headers, body.into()).await {
                tracing::warn!(subject = %self.subject, %error, "an error reply was not sent");
            }
        }
        request.message.reply = Some("warren.void".into());
        if let Err(error) = request.respond(Err(status)).await {
            tracing::debug!(%error, "an error was not counted");
        }
    }
}

fn header<'a>(request: &'a service::Request, name: &str) -> Option<&'a str> {
    request.message.headers.as_ref()?.get(name).map(|value| value.as_str())
}

/// A header holds one line.
fn header_text(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(512).collect()
}

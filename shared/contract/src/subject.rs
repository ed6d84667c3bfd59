//! Subjects that are not verbs: events, wake-ups and byte streams. Tokens are ids or validated names,
//! never free text, so none of these can hold a wildcard.

use crate::id::{OperationId, SessionId};

/// The JetStream stream that replays events.
pub const EVENT_STREAM: &str = "WARREN_EVENTS";

/// What [`EVENT_STREAM`] captures.
pub const EVENT_WILDCARD: &str = "warren.event.>";

/// The request's idempotency key; `Nats-Msg-Id` is taken as well.
pub const REQUEST_ID_HEADER: &str = "Warren-Request-Id";

/// W3C Trace Context header.
pub const TRACEPARENT_HEADER: &str = "traceparent";

/// ADR-32: the error's number.
pub const ERROR_CODE_HEADER: &str = "Nats-Service-Error-Code";

/// ADR-32: the error's text.
pub const ERROR_HEADER: &str = "Nats-Service-Error";

/// `warren.event.<area>.<id>.<what>`; all three are ids or fixed words.
pub fn event(area: &str, id: impl std::fmt::Display, what: &str) -> String {
    format!("warren.event.{area}.{id}.{what}")
}

/// Tells workers of that kind (`vm.create`, …) that an operation is queued. Best effort.
pub fn wake(kind: &str) -> String {
    format!("warren.wake.{kind}")
}

/// Tells who waits for it that an operation changed. Best effort.
pub fn operation_changed(id: OperationId) -> String {
    format!("warren.changed.operation.{id}")
}

/// Tells the worker of a running operation that its cancel was asked for. Best effort.
pub fn operation_cancel(id: OperationId) -> String {
    format!("warren.cancel.operation.{id}")
}

/// Every [`operation_cancel`]; the last token is the operation's id.
pub const OPERATION_CANCEL_WILDCARD: &str = "warren.cancel.operation.*";

/// Tells the relay that the outbox has something. Best effort.
pub const WAKE_RELAY: &str = "warren.wake.outbox";

/// Where the opener of a byte stream listens.
pub fn stream_to_opener(session: SessionId) -> String {
    format!("warren.stream.{session}.opener")
}

/// Where the sender of an upload asks how it goes on ([`crate::upload`]); the session is the one it was announced with.
pub fn upload_place(session: SessionId) -> String {
    format!("warren.stream.{session}.place")
}

/// Where the acceptor of a byte stream listens.
pub fn stream_to_acceptor(session: SessionId) -> String {
    format!("warren.stream.{session}.acceptor")
}
